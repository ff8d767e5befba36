//! `fetchr run` in front of a real server.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use crate::support::{self, FETCHR, command, run};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const DRAIN: &str = "{delay: 0s, timeout: 10s}";

#[test]
fn proxy_forwards_and_does_what_policies_say() {
    let proxy = Proxy::start(&policy("one"));
    let answer = proxy.get("/");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.to_lowercase().contains("x-from: one\r\n"), "{answer}");
    assert!(answer.ends_with("hello"), "{answer}");
    let ready = get(proxy.metrics(), "/readyz");
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    assert!(proxy.log().contains("default/headers"), "the log says which policies are in force: {}", proxy.log());
}

#[test]
fn good_change_is_taken_and_a_bad_one_is_refused_with_its_place() {
    let mut proxy = Proxy::start(&policy("one"));
    proxy.write("policy.yaml", &policy("two"));
    proxy.eventually("the change is in force", |proxy| proxy.get("/").to_lowercase().contains("x-from: two\r\n"));
    proxy.write("policy.yaml", &policy("three").replace("headers:", "haeders:"));
    proxy.eventually("the change is refused with its place", |proxy| {
        proxy.log().contains("policy.yaml:8:5") && proxy.log().contains("did you mean")
    });
    assert!(proxy.get("/").to_lowercase().contains("x-from: two\r\n"), "what was in force stays");
}

#[test]
fn request_under_way_is_answered_after_sigterm_and_the_exit_code_is_0() {
    let mut proxy = Proxy::start(&policy("one"));
    let (address, origin) = (proxy.address, proxy.origin.take().unwrap());
    let slow = thread::spawn(move || get(address, "/slow"));
    origin.wait_for_slow();
    terminate(&proxy.child);
    origin.release_slow();
    let answer = slow.join().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
    assert_eq!(proxy.exit().code(), Some(0), "{}", proxy.log());
}

#[test]
fn taken_port_is_an_error_that_names_the_holder() {
    let proxy = Proxy::start(&policy("one"));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("proxy.yaml"), document(proxy.address.port(), 1, DRAIN)).unwrap();
    let said = run(command(&["run", "--admin-port", "0", "--metrics-port", "0", "-f"]).arg(folder.path()));
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stderr.starts_with(&format!(
        "error: port {} is taken by fetchr (process {})",
        proxy.address.port(),
        proxy.child.id()
    )));
    assert!(said.stderr.contains("spec.interception.listeners[0].port"), "{}", said.stderr);
}

#[test]
fn documents_that_cannot_run_say_what_would_be_right() {
    let says = |text: &str, words: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), text).unwrap();
        let said = run(command(&["run", "--admin-port", "0", "--metrics-port", "0", "-f"]).arg(folder.path()));
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.stderr.contains(words), "{}", said.stderr);
    };
    says("apiVersion: v1\nkind: Service\n", "no FetchrProxy and no FetchrPolicy was found");
    says(&policy("one"), "examples/local/fetchrproxy.yaml");
    says("apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {name: web}\nspec: {}\n", "mode: Explicit");
    says("apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {name: web}\nspec: {workers: 0}\n", "a.yaml:4:");
}

/// One listener, and how it drains.
pub(crate) fn document(port: u16, upstream: u16, drain: &str) -> String {
    format!(
        "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {{name: local}}\nspec:\n  interception:\n    mode: Explicit\n    \
         listeners: [{{name: web, port: {port}, upstream: \"http://127.0.0.1:{upstream}\"}}]\n  drain: {drain}\n"
    )
}

/// A policy that sets `x-from`.
pub(crate) fn policy(value: &str) -> String {
    format!(
        "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrPolicy\nmetadata: {{name: headers}}\nspec:\n  targetRefs: [{{kind: FetchrProxy, name: \
         local}}]\n  rules:\n  - name: all\n    headers: {{response: {{set: [{{name: x-from, value: {value}}}]}}}}\n"
    )
}

/// The program with an origin behind it. It is killed when the test ends.
pub(crate) struct Proxy {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    folder: tempfile::TempDir,
    log: PathBuf,
    origin: Option<Origin>,
    /// Log and state, away from the documents.
    aside: tempfile::TempDir,
}

impl Proxy {
    /// Before an origin that says hello.
    pub(crate) fn start(policy: &str) -> Self {
        let origin = Origin::start();
        let mut proxy = Self::start_as(Path::new(FETCHR), policy, origin.port, DRAIN);
        proxy.origin = Some(origin);
        proxy
    }

    /// By another path, before another origin.
    pub(crate) fn start_as(program: &Path, policy: &str, origin: u16, drain: &str) -> Self {
        Self::start_with(program, policy, |port| document(port, origin, drain))
    }

    /// With another proxy, of which is said what listens on a port.
    pub(crate) fn start_with(program: &Path, policy: &str, proxy: impl Fn(u16) -> String) -> Self {
        // Somebody else may take the port between its choice and its use.
        (0..3).find_map(|_| Self::try_start(program, policy, &proxy)).expect("the proxy starts")
    }

    fn try_start(program: &Path, policy: &str, proxy: impl Fn(u16) -> String) -> Option<Self> {
        let (folder, aside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        fs::write(folder.path().join("proxy.yaml"), proxy(port)).unwrap();
        fs::write(folder.path().join("policy.yaml"), policy).unwrap();
        let log = aside.path().join("log");
        let mut command = support::program(program, &["run", "--admin-port", "0", "--metrics-port", "0", "-f"]);
        command.arg(folder.path()).arg("--state-dir").arg(aside.path());
        let child = command.stderr(fs::File::create(&log).unwrap()).stdout(Stdio::null()).spawn().unwrap();
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let mut proxy = Self { child, address, folder, log, origin: None, aside };
        let start = Instant::now();
        while start.elapsed() < DEADLINE {
            if proxy.child.try_wait().unwrap().is_some() {
                return None;
            }
            if proxy.log().contains("Listeners are open.") {
                return Some(proxy);
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("the proxy is not ready: {}", proxy.log());
    }

    /// Its state folder.
    pub(crate) fn state(&self) -> &Path {
        self.aside.path()
    }

    /// Where its documents are.
    pub(crate) fn documents(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The port for metrics.
    pub(crate) fn metrics(&self) -> SocketAddr {
        self.port_of("metrics")
    }

    /// The port that the log names so.
    pub(crate) fn port_of(&self, name: &str) -> SocketAddr {
        let log = self.log();
        let line = log.lines().find(|line| line.contains("Admin and metrics are open.")).expect("it is logged");
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["fields"][name].as_str().expect("an address").parse().unwrap()
    }

    pub(crate) fn get(&self, path: &str) -> String {
        get(self.address, path)
    }

    pub(crate) fn eventually(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < DEADLINE, "{what}: {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn exit(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "the proxy does not end: {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn terminate(child: &Child) {
    let sent = run(std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]));
    assert_eq!(sent.code, 0, "{sent:?}");
}

/// One request on a connection of its own; the whole answer as text.
pub(crate) fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A server that says hello; to `/slow` when it is told to.
struct Origin {
    port: u16,
    slow_came: Receiver<()>,
    release: Sender<()>,
}

impl Origin {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (came, slow_came) = channel();
        let (release, released) = channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if serve(&stream, &came, &released).is_err() {
                    return;
                }
            }
        });
        Self { port, slow_came, release }
    }

    fn wait_for_slow(&self) {
        self.slow_came.recv_timeout(DEADLINE).expect("the request reaches the origin");
    }

    fn release_slow(&self) {
        self.release.send(()).expect("the origin waits");
    }
}

/// Fails when the test is over and nobody listens any more.
fn serve(stream: &TcpStream, came: &Sender<()>, released: &Receiver<()>) -> Result<(), ()> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let slow = lines.next().is_some_and(|line| line.contains(" /slow "));
    for _ in lines.by_ref().take_while(|line| !line.is_empty()) {}
    if slow {
        came.send(()).map_err(drop)?;
        released.recv().map_err(drop)?;
    }
    // A client that went away is none of the origin's business.
    let _ = { stream }.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
    Ok(())
}
