use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Names, Pusher, Settings};
use crate::segment::{Facts, Segment};

mod folder;
mod ledger;
mod recovery;
mod upload;

const LONG: Duration = Duration::from_secs(30);

fn settings(folder: &Path) -> Settings {
    let hour = Duration::from_secs(3600);
    // A clock at 0 makes the first incarnation of a new folder 1.
    Settings { max_delay: hour, frame_delay: hour, clock: || 0, ..Settings::new(folder) }
}

fn push(pusher: &Pusher, numbers: std::ops::Range<u64>) {
    for number in numbers {
        pusher.try_push(record(number), &Facts { time: 1, status: 200, terms: &[number] }).unwrap();
    }
}

fn record(number: u64) -> Bytes {
    Bytes::from(format!("{{\"number\":{number}}}"))
}

/// The numbers of the records in a file that can be read.
fn numbers(bytes: &[u8]) -> Vec<u64> {
    let Ok(segment) = Segment::open(bytes, None) else { return Vec::new() };
    let frames: Vec<_> = segment.frames().filter_map(|frame| frame.unwrap().ok()).collect();
    let number =
        |record: &[u8]| std::str::from_utf8(record).unwrap().trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    frames.iter().flat_map(|frame| frame.records().map(number).collect::<Vec<u64>>()).collect()
}

fn files(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == kind));
    files.sort();
    files
}

fn bytes_of(folder: &Path) -> u64 {
    // A file may go while it is looked at.
    fs::read_dir(folder).unwrap().filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn names() -> Names {
    Names::new("logs/", "pod").unwrap()
}

/// What a killed process leaves: a copy of its folder while it runs, which is what the kernel would keep of it.
fn killed(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
