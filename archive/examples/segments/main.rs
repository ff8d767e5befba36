//! How fast segments are written and read, on one core, and what they take:
//! `cargo run --release -p fetchr-archive --example segments [MIB]`.

mod exchanges;

use std::{
    fs,
    io::Write as _,
    time::{Duration, Instant},
};

use archive::{
    segment::{Facts, Id, Keys, LocalKey, Query, Segment, Settings, Writer, term},
    spool::{self, Spool},
};
use bytes::Bytes;

use self::exchanges::{Exchange, exchanges};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mib: usize = std::env::args().nth(1).map_or(Ok(1024), |text| text.parse())?;
    let some: Vec<Exchange> = exchanges(1).take(20_000).collect();
    let raw: usize = some.iter().map(|exchange| exchange.json.len() + 1).sum();
    println!("records of {} bytes in the mean", raw / some.len());
    let key = LocalKey::new("key", &[7; 32]);
    for level in [1, 3, 6] {
        for keys in [None, Some(&key as &dyn Keys)] {
            let (stored, took) = write(&some, level, keys)?;
            let encrypted = if keys.is_some() { ", encrypted" } else { "" };
            let percent = 100.0 * stored as f64 / raw as f64;
            println!("write, level {level}{encrypted}: {:.0} MB/s, {percent:.1} % of the records", rate(raw, took));
        }
    }
    spool(&some)?;
    scan(mib << 20)
}

fn rate(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e6
}

/// Bytes of the segment, and how long it took.
fn write(some: &[Exchange], level: i32, keys: Option<&dyn Keys>) -> Result<(usize, Duration), Box<dyn std::error::Error>> {
    let began = Instant::now();
    let mut out = Vec::new();
    let mut writer = Writer::new(Settings { level, ..Settings::default() }, Id([1; 16]), 0, keys, &mut out)?;
    for exchange in some {
        push(&mut writer, exchange, &mut out)?;
    }
    frame(&mut writer, &mut out)?;
    writer.finish(&mut out);
    Ok((out.len(), began.elapsed()))
}

fn push(writer: &mut Writer, exchange: &Exchange, out: &mut Vec<u8>) -> Result<(), Box<dyn std::error::Error>> {
    let terms = [term("route", exchange.route), term("trace", &exchange.trace)];
    writer.push(exchange.json.as_bytes(), &Facts { time: exchange.time, status: exchange.status, terms: &terms })?;
    if writer.is_full() {
        frame(writer, out)?;
    }
    Ok(())
}

fn frame(writer: &mut Writer, out: &mut Vec<u8>) -> Result<(), Box<dyn std::error::Error>> {
    if let Some(pending) = writer.frame(out)? {
        writer.written(pending);
    }
    Ok(())
}

/// What a push costs who pushes, and how fast the spool's thread is.
fn spool(some: &[Exchange]) -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("spool-{}", std::process::id()));
    let spool = Spool::open(spool::Settings { queue_bytes: 256 << 20, ..spool::Settings::new(&folder) })?;
    let (pusher, records): (_, Vec<Bytes>) =
        (spool.pusher(), some.iter().map(|exchange| Bytes::from(exchange.json.clone())).collect());
    let began = Instant::now();
    for (record, exchange) in records.iter().zip(some) {
        let terms = [term("route", exchange.route), term("trace", &exchange.trace)];
        pusher.try_push(record.clone(), &Facts { time: exchange.time, status: exchange.status, terms: &terms })?;
    }
    let pushed = began.elapsed();
    spool.rotate(Duration::from_secs(60));
    let raw: usize = records.iter().map(|record| record.len() + 1).sum();
    println!(
        "push: {:.2?} a record; into closed segments at {:.0} MB/s",
        pushed / u32::try_from(records.len())?,
        rate(raw, began.elapsed())
    );
    drop(spool);
    Ok(fs::remove_dir_all(folder)?)
}

/// One file of so many bytes of records: read as a whole, and by what the index says.
fn scan(bytes: usize) -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("segments-{}.fxs", std::process::id()));
    let mut file = fs::File::create(&path)?;
    let (mut out, mut raw, mut looked_for) = (Vec::new(), 0, None);
    let mut writer = Writer::new(Settings::default(), Id([2; 16]), 0, None, &mut out)?;
    for exchange in exchanges(2) {
        raw += exchange.json.len() + 1;
        push(&mut writer, &exchange, &mut out)?;
        file.write_all(&out)?;
        out.clear();
        if raw >= bytes / 2 && looked_for.is_none() {
            looked_for = Some(exchange);
        } else if raw >= bytes {
            break;
        }
    }
    frame(&mut writer, &mut out)?;
    writer.finish(&mut out);
    file.write_all(&out)?;
    let segment = Segment::open(fs::File::open(&path)?, None)?;
    let looked_for = looked_for.ok_or("the file is too small")?;
    let second = looked_for.time..=looked_for.time + 1_000_000_000;
    let by_trace = Query { terms: vec![vec![term("trace", &looked_for.trace)]], ..Query::default() };
    let by_time = Query { time: Some(second), ..Query::default() };
    for (what, query) in [("all", Query::default()), ("one second of it", by_time), ("one trace", by_trace)] {
        let began = Instant::now();
        let (mut frames, mut records, mut found) = (0, 0, 0);
        for entry in segment.select(&query) {
            let frame = segment.read(entry)??;
            frames += 1;
            for record in frame.records() {
                records += 1;
                found += usize::from(memchr::memmem::find(record, looked_for.trace.as_bytes()).is_some());
            }
        }
        let took = began.elapsed();
        println!(
            "read {what} of {} MiB: {took:.1?}, {frames} of {} frames, {records} records, {found} found",
            raw >> 20,
            segment.entries().len()
        );
    }
    let began = Instant::now();
    let without = Segment::scan(fs::File::open(&path)?, None)?;
    println!("find the frames without the index: {:.1?}, {} frames", began.elapsed(), without.entries().len());
    Ok(fs::remove_file(&path)?)
}
