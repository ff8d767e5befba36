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

/// Writes so that each of some segments has records, and removals of records in itself and in those before it. Which are gone.
fn with_removals(dir: &Path, limits: Limits) -> Vec<u32> {
    let (mut files, _) = Files::open(dir, limits, &Arc::new(Held::new())).unwrap();
    let mut gone = Vec::new();
    for number in 0..20 {
        files.append(name(number), &[number as u8; 20]).unwrap();
        if number % 3 == 2 {
            for number in [number / 2, number - 1] {
                files.remove(name(number), None).unwrap();
                gone.push(number);
            }
        }
    }
    gone
}

/// As it was written, with one change.
fn copied(from: &Path, which: usize, change: impl FnOnce(&mut Vec<u8>)) -> TempDir {
    let dir = TempDir::new().unwrap();
    for path in segments(from) {
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = &segments(dir.path())[which];
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
    dir
}

#[test]
fn whichever_byte_is_damaged_what_was_taken_out_is_not_found_again() {
    let (written, limits) = (TempDir::new().unwrap(), Limits::of(8 << 10));
    let gone = with_removals(written.path(), limits);
    let lengths: Vec<usize> = segments(written.path()).iter().map(|path| fs::metadata(path).unwrap().len() as usize).collect();
    assert!(lengths.len() >= 4, "{lengths:?}");
    let (mut whole, mut fewest) = (0, usize::MAX);
    for (which, at) in lengths.iter().enumerate().flat_map(|(which, length)| (0..*length).map(move |at| (which, at))) {
        let dir = copied(written.path(), which, |bytes| bytes[at] ^= 1 << (at % 8));
        for damaged in [true, false] {
            let held = Arc::new(Held::new());
            let (_, recovered) = Files::open(dir.path(), limits, &held).unwrap();
            let there: Vec<u32> = (0..20).filter(|number| found(&held, *number).is_some()).collect();
            let alive: Vec<&u32> = there.iter().filter(|number| gone.contains(number)).collect();
            assert!(alive.is_empty(), "byte {at} of segment {which}: {alive:?} are there");
            assert!(damaged || recovered.damaged == 0, "byte {at} of segment {which}: it is found twice");
            whole += usize::from(damaged && recovered.damaged == 0);
            fewest = fewest.min(there.len());
            if which + 1 < lengths.len() {
                assert!(there.contains(&19), "byte {at} of segment {which}: what is newer than the damage stays");
            }
        }
    }
    assert!(
        whole > 100 && fewest == 0,
        "contents are another one's business, and the newest frame takes all with it: {whole}, {fewest}"
    );
}

#[test]
fn segment_that_was_cut_off_takes_with_it_what_is_older_unless_it_is_the_newest() {
    let (written, limits) = (TempDir::new().unwrap(), Limits::of(8 << 10));
    let gone = with_removals(written.path(), limits);
    let last = segments(written.path()).len() - 1;
    for which in 0..=last {
        // Within a record, as all of them are longer.
        let dir = copied(written.path(), which, |bytes| bytes.truncate(bytes.len() - 7));
        let held = Arc::new(Held::new());
        let (_, recovered) = Files::open(dir.path(), limits, &held).unwrap();
        assert_eq!(recovered.damaged, 1);
        let there: Vec<u32> = (0..20).filter(|number| found(&held, *number).is_some()).collect();
        let older = there.iter().filter(|number| **number < 5).count();
        assert_eq!(older > 0, which == last, "segment {which}: {there:?}");
        assert!(there.iter().all(|number| !gone.contains(number)), "segment {which}: {there:?}");
    }
}

#[test]
fn what_could_not_be_written_whole_leaves_no_damage() {
    let dir = TempDir::new().unwrap();
    own_mounts();
    mount(dir.path(), 0, c"size=64k");
    // Segments of 256 KiB.
    let limits = Limits::of(8 << 20);
    let (mut files, _) = Files::open(dir.path(), limits, &Arc::new(Held::new())).unwrap();
    files.append(name(0), &[0; 1000]).unwrap();
    // The only segment can't leave for it.
    let full = files.append(name(1), &vec![1; 100_000]).unwrap_err();
    assert!(is_full(&full), "{full}");
    files.append(name(2), &[2; 1000]).unwrap();
    drop(files);
    let held = Arc::new(Held::new());
    let (_, recovered) = Files::open(dir.path(), limits, &held).unwrap();
    assert_eq!(recovered.damaged, 0);
    assert!(found(&held, 0).is_some() && found(&held, 1).is_none() && found(&held, 2).is_some());
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
