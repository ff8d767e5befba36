//! Memory that only the start needed.

use std::{fs, io, time::Duration};

/// By then the configuration is there, the ports are open and the first stream stands.
const STARTED: Duration = Duration::from_secs(5);

/// Lets go of the pages of code that starting has touched: most of it never runs again, and there is a sidecar in every pod.
/// What does run is mapped again from the page cache, where it stays.
pub(super) async fn drop_startup_code() {
    tokio::time::sleep(STARTED).await;
    if let Err(error) = drop_code() {
        tracing::debug!(%error, "The pages of startup code stay mapped.");
    }
}

fn drop_code() -> io::Result<()> {
    let program = std::env::current_exe()?;
    for (start, len) in code_of(&fs::read_to_string("/proc/self/maps")?, &program.to_string_lossy()) {
        // SAFETY: the range is one that the kernel has mapped privately from the program's file, readable and executable but not writable.
        // So its pages equal the file's, and are read from it again when they are next touched. The program is loaded for as long as it runs, so
        // nobody unmaps the range meanwhile.
        if unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Start and length of the program's code in the lines of `/proc/self/maps`.
fn code_of(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let code = |line: &str| {
        let mut columns = line.split_ascii_whitespace();
        let (range, mode) = (columns.next()?, columns.next()?);
        let file = columns.nth(3)?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (mode == "r-xp" && file == program).then(|| (start, end.saturating_sub(start)))
    };
    maps.lines().filter_map(code).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_is_chosen() {
        let maps = "\
            5566aa000000-5566aa100000 r--p 00000000 fe:00 12 /fetchr-proxy\n\
            5566aa100000-5566aa180000 r-xp 00100000 fe:00 12 /fetchr-proxy\n\
            5566aa180000-5566aa190000 rw-p 00180000 fe:00 12 /fetchr-proxy\n\
            7f0000000000-7f0000001000 r-xp 00000000 fe:00 13 /lib/libc.so.6\n\
            7f0000002000-7f0000003000 r-xp 00000000 00:00 0\n\
            7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0 [vdso]\n";
        assert_eq!(code_of(maps, "/fetchr-proxy"), [(0x5566_aa10_0000, 0x8_0000)]);
    }

    #[test]
    fn program_runs_on_without_its_pages() {
        drop_code().unwrap();
        assert_eq!(code_of("", "x"), []);
    }
}
