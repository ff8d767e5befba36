//! What a request costs, in instructions: unlike time, they are the same on a busy machine, so that a regression is seen.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// User instructions of one GET of 1 KiB over connections that stay open, by a build of the profile `dev`, which is that of the tests.
/// Measured; whoever makes a request cheaper lowers it.
const RECORDED: f64 = 124_500.0;

/// How much more is no mistake: what a request shares with others depends on when they come.
const MARGIN: f64 = 0.08;

const REQUESTS: u32 = 1000;

#[test]
fn request_costs_no_more_instructions_than_it_did() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    fs::write(folder.path().join("proxy.yaml"), documents(port, origin())).unwrap();
    let mut proxy = Counted::start(folder.path());
    let mut client = connect(port);
    send(&mut client, 200);
    proxy.control("--instr=on");
    send(&mut client, 200);
    proxy.control("--zero");
    send(&mut client, REQUESTS);
    proxy.control("--dump");
    let cost = proxy.counted() / f64::from(REQUESTS);
    println!("{cost:.0} instructions a request");
    let (least, most) = (RECORDED * (1.0 - 2.0 * MARGIN), RECORDED * (1.0 + MARGIN));
    assert!(cost <= most, "a request costs {cost:.0} instructions, where {RECORDED} are recorded");
    assert!(cost >= least, "a request costs only {cost:.0} instructions: record that instead of {RECORDED}");
}

/// The proxy under callgrind.
struct Counted {
    valgrind: Child,
    out: std::path::PathBuf,
}

impl Counted {
    fn start(folder: &Path) -> Self {
        let out = folder.join("counts");
        let valgrind = Command::new("valgrind")
            .args(["--tool=callgrind", "--instr-atstart=no", &format!("--callgrind-out-file={}", out.display())])
            .arg(env!("CARGO_BIN_EXE_fetchr"))
            .args(["run", "--no-supervisor", "--admin-port", "0", "--metrics-port", "0", "-f"])
            .arg(folder.join("proxy.yaml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("valgrind is installed, as by `make test`");
        Self { valgrind, out }
    }

    /// Sends an order, and waits until it is carried out.
    fn control(&self, order: &str) {
        let done = Command::new("callgrind_control").arg(order).arg(self.valgrind.id().to_string()).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    /// What the first dump says.
    fn counted(&mut self) -> f64 {
        let file = self.out.with_extension("1");
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let totals = text.lines().find_map(|line| line.strip_prefix("totals: ")).expect("a dump has totals");
        totals.trim().parse().unwrap()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let _ = self.valgrind.kill();
        let _ = self.valgrind.wait();
    }
}

fn documents(port: u16, origin: u16) -> String {
    format!(
        "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {{name: counted}}\nspec:\n  workers: 1\n  interception:\n    mode: Explicit\n    \
         listeners: [{{name: web, port: {port}, upstream: \"http://127.0.0.1:{origin}\"}}]\n---\napiVersion: fetchr.sh/v1alpha1\nkind: FetchrPolicy\n\
         metadata: {{name: counted}}\nspec:\n  targetRefs: [{{kind: FetchrProxy, name: counted}}]\n  rules:\n  - name: all\n    \
         headers: {{response: {{set: [{{name: x-counted, value: fetchr}}]}}}}\n"
    )
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Answers 1 KiB to everything, for as long as the test runs.
fn origin() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nServer: origin\r\nDate: Tue, 24 Nov 2026 10:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n{}",
        "x".repeat(1024)
    );
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            thread::spawn(move || while read_until(&mut stream, b"\r\n\r\n") && stream.write_all(answer.as_bytes()).is_ok() {});
        }
    });
    port
}

fn connect(port: u16) -> TcpStream {
    let start = Instant::now();
    loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(60), "{error}"),
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// One request after the other.
fn send(stream: &mut TcpStream, requests: u32) {
    for _ in 0..requests {
        stream.write_all(b"GET /path HTTP/1.1\r\nHost: counted.example\r\nUser-Agent: counter\r\nAccept: */*\r\n\r\n").unwrap();
        assert!(read_until(stream, "x".repeat(1024).as_bytes()), "the answer is whole");
    }
}

/// Reads until what was read ends so; false if the connection ends before.
fn read_until(stream: &mut TcpStream, end: &[u8]) -> bool {
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while !all.ends_with(end) {
        match stream.read(&mut piece) {
            Ok(read) if read > 0 => all.extend_from_slice(&piece[..read]),
            _ => return false,
        }
    }
    true
}
