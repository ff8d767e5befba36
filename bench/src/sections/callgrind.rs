//! Instructions of a process, counted by valgrind's callgrind between two of its requests.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{idle::answer_len, peers::local, process::Process};

/// How often it counts.
const COUNTS: u32 = 4;
/// Requests before it counts: pools, caches and the allocator are warm then.
const WARM: u32 = 300;
const PATIENCE: Duration = Duration::from_secs(180);

/// User instructions of one request, over so many of them. `target` says what a request asks for, by its number.
pub(crate) fn count(
    command: Vec<String>,
    folder: &Path,
    port: u16,
    requests: u32,
    target: &dyn Fn(u32) -> String,
) -> Result<f64> {
    let out = folder.join("callgrind.out");
    let mut words = vec!["valgrind".to_owned(), "--tool=callgrind".to_owned(), "--instr-atstart=no".to_owned()];
    words.push(format!("--callgrind-out-file={}", out.display()));
    words.extend(command);
    words.extend(["--no-supervisor", "--admin-port", "0", "--metrics-port", "0", "--state-dir"].map(str::to_owned));
    words.push(folder.join("state").display().to_string());
    let process = Process::start(&words, &folder.join("callgrind.log"))?;
    let stream = connect(port).context("the proxy does not listen; is valgrind installed, as by `make bench`?")?;
    let mut client = Client { stream, target, sent: 0 };
    let control = |order: &str| {
        let done = Command::new("callgrind_control").arg(order).arg(process.id().to_string()).output()?;
        ensure!(done.status.success(), "callgrind_control {order}: {}", String::from_utf8_lossy(&done.stderr));
        anyhow::Ok(())
    };
    client.send(WARM)?;
    process.wait_until_quiet();
    control("--instr=on")?;
    client.send(WARM)?;
    control("--zero")?;
    // Besides requests, the proxy looks at its files now and then; the least of several counts has none of it.
    let mut least = f64::INFINITY;
    for number in 1..=COUNTS {
        client.send(requests / COUNTS)?;
        control("--dump")?;
        least = least.min(total(&out.with_extension(format!("out.{number}")))? / f64::from(requests / COUNTS));
    }
    Ok(least)
}

/// What a dump counts. The next proxy is counted into files of the same names, so it is removed.
fn total(dump: &Path) -> Result<f64> {
    let text = fs::read_to_string(dump).with_context(|| format!("no dump {}", dump.display()))?;
    fs::remove_file(dump)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).context("the dump has no totals")?;
    Ok(total.trim().parse()?)
}

fn connect(port: u16) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(local(port)) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if start.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Sends one request after the other.
struct Client<'a> {
    stream: TcpStream,
    target: &'a dyn Fn(u32) -> String,
    sent: u32,
}

impl Client<'_> {
    fn send(&mut self, requests: u32) -> Result<()> {
        let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
        for _ in 0..requests {
            let target = (self.target)(self.sent);
            self.sent += 1;
            let request = format!("GET {target} HTTP/1.1\r\nHost: bench.example\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n");
            self.stream.write_all(request.as_bytes())?;
            answer.clear();
            while answer_len(&answer).is_none_or(|len| answer.len() < len) {
                match self.stream.read(&mut piece)? {
                    0 => bail!("the connection ended"),
                    read => answer.extend_from_slice(&piece[..read]),
                }
            }
            ensure!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }
}
