//! Memory that only the start needed.

use std::{fs, io, time::Duration};

/// By then the configuration is there, the ports are open and the first stream stands.
const STARTED: Duration = Duration::from_secs(5);

/// Lets go of the pages of files that starting has touched, code for the most part: most of it never runs again, and there is a sidecar
/// in every pod. What does run is mapped again from the page cache, where it stays.
pub(super) async fn drop_startup_code() {
    tokio::time::sleep(STARTED).await;
    drop_code_or_tell();
}

/// Lets go of them now.
pub(crate) fn drop_code_or_tell() {
    if let Err(error) = drop_code() {
        tracing::debug!(%error, "The pages of startup code stay mapped.");
    }
}

fn drop_code() -> io::Result<()> {
    for (start, len) in unchanged(&fs::read_to_string("/proc/self/smaps")?) {
        // SAFETY: the range is one that the kernel has mapped privately from a file, readable but not writable, and none of its pages has
        // ever been changed. So they equal the file's, and are read from it again when they are next touched. Program and libraries are
        // loaded for as long as the process runs, so nobody unmaps the range meanwhile.
        if unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Start and length of the mappings in `/proc/self/smaps` whose pages are those of their files. Not among them is what the dynamic linker has
/// relocated and then made read-only: those pages are nowhere else.
fn unchanged(smaps: &str) -> Vec<(usize, usize)> {
    let (mut found, mut current) = (Vec::new(), None);
    for line in smaps.lines() {
        if let Some(pages) = line.strip_prefix("Anonymous:") {
            found.extend(current.take().filter(|_| pages.trim() == "0 kB"));
        } else if line.starts_with(|first: char| first.is_ascii_digit() || ('a'..='f').contains(&first)) {
            current = read_only_file(line);
        }
    }
    found
}

/// The range of a mapping's first line, if it is of a file and not writable.
fn read_only_file(line: &str) -> Option<(usize, usize)> {
    let mut columns = line.split_ascii_whitespace();
    let (range, mode) = (columns.next()?, columns.next()?);
    let file = columns.nth(3)?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (matches!(mode, "r-xp" | "r--p") && file.starts_with('/')).then(|| (start, end.saturating_sub(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_pages_of_files_are_chosen() {
        let mapping =
            |line: &str, anonymous: u32| format!("{line}\nSize: 4 kB\nAnonymous:             {anonymous} kB\nVmFlags: rd\n");
        let smaps = [
            mapping("5566aa000000-5566aa100000 r--p 00000000 fe:00 12 /fetchr-proxy", 0),
            mapping("5566aa100000-5566aa180000 r-xp 00100000 fe:00 12 /fetchr-proxy", 0),
            // Relocated.
            mapping("5566aa180000-5566aa190000 r--p 00180000 fe:00 12 /fetchr-proxy", 64),
            mapping("5566aa190000-5566aa1a0000 rw-p 00190000 fe:00 12 /fetchr-proxy", 0),
            mapping("7f0000002000-7f0000003000 r-xp 00000000 00:00 0", 0),
            mapping("7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0 [vdso]", 0),
        ];
        assert_eq!(unchanged(&smaps.concat()), [(0x5566_aa00_0000, 0x10_0000), (0x5566_aa10_0000, 0x8_0000)]);
    }

    #[test]
    fn program_runs_on_without_its_pages() {
        drop_code().unwrap();
        assert_eq!(unchanged("Anonymous: 0 kB\nx"), []);
    }
}
