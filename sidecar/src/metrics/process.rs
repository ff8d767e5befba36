//! The process's own figures, read from `/proc` when the page is asked for.

use std::{
    fmt, fs,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Memory, processor time, file descriptors and start of this process.
#[derive(Debug)]
pub(super) struct Process {
    started: f64,
    page_size: f64,
    ticks: f64,
    since: Instant,
}

impl Process {
    pub(super) fn new() -> Self {
        Self {
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            page_size: system(libc::_SC_PAGESIZE),
            ticks: system(libc::_SC_CLK_TCK),
            since: Instant::now(),
        }
    }

    /// Resident bytes.
    fn resident(&self) -> Option<f64> {
        let statm = fs::read_to_string("/proc/self/statm").ok()?;
        let pages: f64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(pages * self.page_size)
    }

    /// Seconds of processor time, user and system.
    fn cpu(&self) -> Option<f64> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the program's name in brackets and may hold blanks.
        let fields = stat.rsplit_once(')')?.1;
        let ticks: f64 = fields.split_ascii_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Some(ticks / self.ticks)
    }

    fn open_fds() -> Option<f64> {
        // The folder's own descriptor is one of them.
        Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)
        };
        gauge("process_resident_memory_bytes", "Resident memory", self.resident())?;
        gauge("process_open_fds", "Open file descriptors", Self::open_fds())?;
        gauge("process_start_time_seconds", "Start of the process since the epoch", Some(self.started))?;
        gauge("process_uptime_seconds", "Age of the process", Some(self.since.elapsed().as_secs_f64()))?;
        let Some(cpu) = self.cpu() else { return Ok(()) };
        let counter = ConstCounter::new(cpu);
        let metric = encoder.encode_descriptor("process_cpu_seconds", "Processor time used", None, counter.metric_type())?;
        counter.encode(metric)
    }
}

fn system(name: libc::c_int) -> f64 {
    // SAFETY: `sysconf` takes a number and touches no memory of ours.
    let value = unsafe { libc::sysconf(name) };
    value as f64
}
