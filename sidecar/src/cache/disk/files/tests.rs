use std::collections::HashMap;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const SIZE: u64 = 256 << 10;

fn open(dir: &Path) -> (Files, Arc<Held>, Recovered) {
    let held = Arc::new(Held::new());
    let (files, recovered) = Files::open(dir, Limits::of(SIZE), &held).unwrap();
    (files, held, recovered)
}

fn name(number: u32) -> Name {
    let mut name = [7; 16];
    name[..4].copy_from_slice(&number.to_le_bytes());
    name
}

fn found(held: &Held, number: u32) -> Option<Vec<u8>> {
    let found = held.lock().get(&name(number));
    found.map(|(place, file)| read(&file, place).unwrap())
}

fn on_disk(dir: &Path) -> u64 {
    let lengths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    lengths.sum()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.extension().is_some_and(|extension| extension == "segment"));
    all.sort();
    all
}

#[test]
fn what_was_written_is_found_also_after_another_start() {
    let dir = TempDir::new().unwrap();
    let (mut files, held, _) = open(dir.path());
    for number in 0..20 {
        files.append(name(number), &vec![number as u8; 100 + number as usize]).unwrap();
    }
    files.append(name(3), b"newer").unwrap();
    files.remove(name(4), None).unwrap();
    let was = held.lock().remove(&name(5));
    files.remove(name(5), was).unwrap();
    for (held, recovered) in [(held, None), {
        let (_, held, recovered) = open(dir.path());
        (held, Some(recovered))
    }] {
        assert_eq!(recovered.unwrap_or_default(), Recovered::default());
        assert_eq!(found(&held, 3).unwrap(), b"newer");
        assert_eq!((found(&held, 4), found(&held, 5), found(&held, 20)), (None, None, None));
        assert!((6..20).all(|number| found(&held, number).unwrap() == vec![number as u8; 100 + number as usize]));
    }
}

#[test]
fn it_takes_no_more_than_it_may_and_the_oldest_leave() {
    let dir = TempDir::new().unwrap();
    let (mut files, held, _) = open(dir.path());
    for number in 0..1000 {
        files.append(name(number), &[number as u8; 5000]).unwrap();
        assert!(on_disk(dir.path()) <= SIZE, "after {number}");
    }
    let there: Vec<u32> = (0..1000).filter(|number| found(&held, *number).is_some()).collect();
    assert_eq!(there, (1000 - there.len() as u32..1000).collect::<Vec<_>>());
    assert!(there.len() > 45, "{}", there.len());
    assert_eq!(held.lock().len(), there.len());
    assert!(segments(dir.path()).len() <= 65);
}

#[test]
fn small_records_are_bounded_in_number() {
    let dir = TempDir::new().unwrap();
    let (mut files, held, _) = open(dir.path());
    (0..1000).for_each(|number| files.append(name(number), b"small").unwrap());
    let len = held.lock().len();
    assert!((1..=64).contains(&len), "{len}");
    assert!(found(&held, 999).is_some());
}

#[test]
fn many_starts_leave_no_more_files() {
    let dir = TempDir::new().unwrap();
    for number in 0..200 {
        open(dir.path()).0.append(name(number), b"one").unwrap();
    }
    assert!(segments(dir.path()).len() < 5);
}

#[test]
fn smaller_size_at_another_start_lets_the_oldest_go() {
    let dir = TempDir::new().unwrap();
    (0..60).for_each(|number| open(dir.path()).0.append(name(number), &[1; 3000]).unwrap());
    let held = Arc::new(Held::new());
    let (_files, _) = Files::open(dir.path(), Limits::of(SIZE / 4), &held).unwrap();
    assert!(on_disk(dir.path()) <= SIZE / 4);
    assert!(found(&held, 0).is_none() && found(&held, 59).is_some());
}

#[test]
fn only_one_process_has_a_folder() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().join("not/yet");
    let lock = Lock::take(&dir).unwrap().unwrap();
    assert!(Lock::take(&dir).unwrap().is_none());
    drop(lock);
    assert!(Lock::take(&dir).unwrap().is_some());
}

/// Another filesystem at `dir`, for this thread alone. Needs root.
fn mount(dir: &Path, flags: libc::c_ulong, data: &std::ffi::CStr) {
    let path = std::ffi::CString::new(dir.to_str().unwrap()).unwrap();
    // SAFETY: strings that end in 0 and outlive the call.
    let done = unsafe { libc::mount(c"none".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), flags, data.as_ptr().cast()) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

fn own_mounts() {
    // SAFETY: takes numbers, and changes this thread's view of mounts alone.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "{}", io::Error::last_os_error());
    // SAFETY: strings that end in 0 and outlive the call.
    let done = unsafe {
        libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, std::ptr::null())
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

#[test]
fn on_a_full_disk_the_oldest_leave_and_one_that_takes_no_writes_is_an_error() {
    let dir = TempDir::new().unwrap();
    own_mounts();
    mount(dir.path(), 0, c"size=1m");
    let held = Arc::new(Held::new());
    // Segments of 256 KiB in a place that may take 8 MiB, and has one.
    let (mut files, _) = Files::open(dir.path(), Limits::of(8 << 20), &held).unwrap();
    for number in 0..1000 {
        files.append(name(number), &[number as u8; 10_000]).unwrap();
    }
    let there: Vec<u32> = (0..1000).filter(|number| found(&held, *number).is_some()).collect();
    assert_eq!(there, (1000 - there.len() as u32..1000).collect::<Vec<_>>());
    assert!(there.len() > 40, "{}", there.len());
    drop((files, held));
    mount(dir.path(), libc::MS_REMOUNT | libc::MS_RDONLY, c"");
    assert!(Lock::take(dir.path()).is_err());
    assert!(Files::open(dir.path(), Limits::of(8 << 20), &Arc::new(Held::new())).is_err());
}

#[test]
fn what_cannot_be_marked_as_gone_leaves_with_all_that_is_older() {
    let dir = TempDir::new().unwrap();
    let (mut files, held, _) = open(dir.path());
    (0..30).for_each(|number| files.append(name(number), &[1; 3000]).unwrap());
    let (place, _) = held.lock().get(&name(10)).unwrap();
    // So that nothing can be written: the newest can't be, and another one not begun.
    files.newest = Some((files.next - 1, Arc::new(File::open("/dev/null").unwrap()), 4));
    files.remove(name(10), None).unwrap();
    assert!((0..=10).all(|number| found(&held, number).is_none()) && found(&held, 29).is_some());
    let (_, held, _) = open(dir.path());
    assert!(found(&held, 10).is_none() && found(&held, 29).is_some(), "{place:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is found after any damage is what was written last under that name, or an older one where the damage took the newer, or
    /// nothing; damaged contents are another one's business.
    #[test]
    fn damage_takes_records_and_makes_none(
        writes in prop::collection::vec((0u32..30, 1usize..3000), 1..120),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u8..3), 1..4),
    ) {
        let dir = TempDir::new().unwrap();
        let mut written: HashMap<u32, Vec<Vec<u8>>> = HashMap::new();
        {
            let (mut files, ..) = open(dir.path());
            for (count, (number, len)) in writes.iter().enumerate() {
                let content = vec![count as u8; *len];
                files.append(name(*number), &content).unwrap();
                written.entry(*number).or_default().push(content);
            }
        }
        for (which, at, how) in damage {
            let all = segments(dir.path());
            let path = &all[which.index(all.len())];
            let mut bytes = fs::read(path).unwrap();
            let at = at.index(bytes.len() + 1);
            match how {
                0 if at < bytes.len() => bytes[at] ^= 1,
                1 => bytes.truncate(at),
                _ => bytes.splice(at.., vec![0; 5000]).for_each(drop),
            }
            fs::write(path, &bytes).unwrap();
        }
        let (mut files, held, _) = open(dir.path());
        for number in 0..30 {
            if let Some(found) = found(&held, number) {
                let all = &written[&number];
                // One byte may have been flipped, or a tail been zeroed.
                let fits = |content: &&Vec<u8>| content.len() == found.len();
                prop_assert!(all.iter().any(|content| fits(&content)), "{number}");
            }
        }
        // It goes on from there.
        files.append(name(99), b"later").unwrap();
        drop(files);
        let (_, held, recovered) = open(dir.path());
        prop_assert_eq!(recovered.damaged, 0);
        prop_assert_eq!(found(&held, 99).unwrap(), b"later");
    }
}
