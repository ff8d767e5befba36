//! The sidecar's program behind real redirect rules: a pod with an application, and a peer at the other end of a virtual cable.
//! Needs root.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Child, Command},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use tempfile::TempDir;

const SIDECAR: u32 = 2733;
/// More than anything here takes, also on a busy machine.
const LONG: Duration = Duration::from_secs(60);
/// How long the head of a request may take.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn inbound_requests_reach_the_application_through_the_sidecar() {
    Pod::with(|pod| {
        for address in ["10.9.0.2:8080", "[fd00:9::2]:8080"] {
            let answer = pod.peer(move || ask(address, "GET /x HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n"));
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
            for seen in ["GET /x HTTP/1.1", "host: shop", "via: 1.1 fetchr-u1-in", "x-forwarded-for: "] {
                assert!(answer.contains(seen), "{seen} in {answer}");
            }
        }
    });
}

#[test]
fn outbound_requests_go_to_where_the_application_sent_them() {
    Pod::with(|_| {
        let answer = ask("10.9.0.1:80", "GET / HTTP/1.1\r\nhost: elsewhere\r\nconnection: close\r\n\r\n");
        assert!(answer.contains("via: 1.1 fetchr-u1-out") && answer.contains("host: elsewhere"), "{answer}");
    });
}

#[test]
fn protocol_whose_server_speaks_first_passes() {
    Pod::with(|pod| {
        let heard = pod.peer(|| {
            let mut stream = connect("10.9.0.2:8081");
            let mut greeting = [0; 9];
            stream.read_exact(&mut greeting).unwrap();
            stream.write_all(b"hello\r\n").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            (String::from_utf8(greeting.to_vec()).unwrap(), rest)
        });
        assert_eq!(heard, ("220 app\r\n".to_owned(), "got hello\r\n".to_owned()));
    });
}

#[test]
fn server_that_spoke_first_once_is_not_waited_for_again() {
    Pod::with(|pod| {
        let delays = pod.peer(|| {
            let greeting = || {
                let start = Instant::now();
                connect("10.9.0.2:8081").read_exact(&mut [0; 9]).unwrap();
                start.elapsed()
            };
            (greeting(), (0..5).map(|_| greeting()).min().unwrap())
        });
        // Until then the client's silence is waited for.
        let silence = Duration::from_millis(200);
        assert!(delays.0 >= silence && delays.1 < silence / 2, "{delays:?}");
    });
}

#[test]
fn tls_passes_through_and_is_counted_by_whether_it_names_its_host() {
    Pod::with(|pod| {
        let (sent, heard) = pod.peer(|| {
            let (hello, mut stream) = (hello("shop.example"), connect("10.9.0.2:8083"));
            stream.write_all(&hello).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut heard = String::new();
            stream.read_to_string(&mut heard).unwrap();
            (hello.len(), heard)
        });
        assert_eq!(heard, format!("got {sent} bytes\n"));
        let page = pod.peer(|| ask("10.9.0.2:4621", "GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"));
        assert!(page.contains("fetchr_tls_passed_total{direction=\"inbound\",server_name=\"present\"} 1"), "{page}");
    });
}

#[test]
fn tls_client_of_the_forward_proxy_reaches_the_host_that_it_names() {
    Pod::with(|_| {
        let listener = TcpListener::bind("127.0.0.1:443").unwrap();
        let (sent, mut client) = (hello("localhost"), connect("127.0.0.1:4612"));
        client.write_all(&sent).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut came = vec![0; sent.len()];
        server.read_exact(&mut came).unwrap();
        assert_eq!(came, sent, "to the last byte");
        server.write_all(b"ok").unwrap();
        let mut answer = [0; 2];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ok");
        drop(listener);
        for unreachable in ["localhost", "nobody.invalid"] {
            let mut client = connect("127.0.0.1:4612");
            client.write_all(&hello(unreachable)).unwrap();
            let mut alert = Vec::new();
            client.read_to_end(&mut alert).unwrap();
            assert_eq!(alert, [21, 3, 1, 0, 2, 2, 49], "{unreachable}: access_denied");
        }
        let mut nameless = connect("127.0.0.1:4612");
        nameless.write_all(&hello("192.0.2.1")).unwrap();
        let mut rest = Vec::new();
        let _ = nameless.read_to_end(&mut rest); // a reset is an end too
        assert_eq!(rest, b"");
    });
}

#[test]
fn client_that_is_slow_to_speak_is_still_seen_as_http() {
    Pod::with(|pod| {
        let answer = pod.peer(|| {
            let mut stream = connect("10.9.0.2:8080");
            // Longer than the silence after which the upstream is connected: a way around policies, if that decided.
            thread::sleep(Duration::from_millis(400));
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert!(answer.contains("via: 1.1 fetchr-u1-in"), "{answer}");
    });
}

#[test]
fn head_that_begins_late_has_its_whole_time() {
    Pod::with(|pod| {
        let answer = pod.peer(|| {
            let mut stream = connect("10.9.0.2:8080");
            // Longer than a head may take from its first byte.
            thread::sleep(HEAD_LIMIT + Duration::from_millis(300));
            stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            thread::sleep(Duration::from_millis(300));
            stream.write_all(b"host: a\r\nconnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    });
}

#[test]
fn settings_of_a_silent_clients_server_do_not_make_it_a_tunnel() {
    Pod::with(|pod| {
        let answer = pod.peer(|| {
            let mut stream = connect("10.9.0.2:8082");
            // Longer than the silence after which the upstream is connected, and says its SETTINGS.
            thread::sleep(Duration::from_millis(400));
            stream.write_all(b"GET /x HTTP/x\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            String::from_utf8_lossy(&answer).into_owned()
        });
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    });
}

#[test]
fn request_without_a_version_does_not_pass_as_bytes() {
    Pod::with(|pod| {
        let answer = pod.peer(|| ask("10.9.0.2:8080", "GET /x\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    });
}

#[test]
fn connection_to_a_port_of_the_sidecar_is_refused() {
    Pod::with(|pod| {
        let answer = pod.peer(|| ask("10.9.0.2:4610", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert_eq!(answer, "");
        let page = pod.peer(|| ask("10.9.0.2:4621", "GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"));
        assert!(page.contains("fetchr_dropped_total{direction=\"inbound\",reason=\"not_redirected\"} 1"), "{page}");
    });
}

#[test]
fn drain_takes_inbound_away_and_leaves_outbound() {
    Pod::with(|pod| {
        let drained = pod.proxy_command("drain").output().unwrap();
        assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
        assert!(pod.peer(|| TcpStream::connect_timeout(&"10.9.0.2:8080".parse().unwrap(), LONG)).is_err());
        let answer = ask("10.9.0.1:80", "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        assert!(answer.contains("via: 1.1 fetchr-u1-out"), "{answer}");
        assert!(pod.end(), "SIGTERM ends it with success");
    });
}

type Job = Box<dyn FnOnce() + Send>;

/// A namespace with an application on 8080 to 8083, and a sidecar that passes everything without policy.
struct Pod {
    peer: mpsc::Sender<Job>,
    folder: TempDir,
    sidecar: std::cell::RefCell<Option<Child>>,
}

impl Pod {
    /// Runs a test on a thread that lives in the pod's namespace; what it starts does too.
    fn with(test: impl FnOnce(&Self) + Send + 'static) {
        let result = thread::spawn(|| {
            enter_new_namespace();
            let pod = Self::start();
            test(&pod);
        })
        .join();
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    fn start() -> Self {
        let peer = start_peer();
        for address in ["10.9.0.2/24", "fd00:9::2/64"] {
            ip(&["addr", "add", address, "dev", "eth0", "nodad"]);
        }
        ip(&["link", "set", "eth0", "up"]);
        serve("[::]:8080", echo_head);
        serve("[::]:8081", |mut stream| {
            stream.write_all(b"220 app\r\n").unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            stream.write_all(format!("got {said}").as_bytes()).unwrap();
        });
        serve("[::]:8082", |mut stream| {
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
            // It answers nothing; the end of the client's bytes ends it.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        serve("[::]:8083", |mut stream| {
            let mut said = Vec::new();
            stream.read_to_end(&mut said).unwrap();
            stream.write_all(format!("got {} bytes\n", said.len()).as_bytes()).unwrap();
        });
        run(env!("CARGO_BIN_EXE_fetchr-init"), &["--inbound-ports", "8080,8081,8082,8083", "--outbound-ports", "80"]);
        let pod = Self { peer, folder: folder(), sidecar: None.into() };
        *pod.sidecar.borrow_mut() = Some(pod.proxy_command("run").spawn().unwrap());
        let start = Instant::now();
        while !ask("127.0.0.1:4621", "GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").starts_with("HTTP/1.1 200") {
            assert!(start.elapsed() < LONG, "the sidecar is not ready");
            thread::sleep(Duration::from_millis(10));
        }
        pod
    }

    /// The program as admission would start it, though without an operator.
    fn proxy_command(&self, verb: &str) -> Command {
        let mut command = Command::new(self.folder.path().join("fetchr-proxy"));
        command.arg(verb).uid(SIDECAR).gid(SIDECAR).env_clear().env("FETCHR_STATE_DIR", self.folder.path().join("state"));
        command.envs([("FETCHR_DRAIN_DELAY", "10ms"), ("FETCHR_DRAIN_TIMEOUT", "5s")]);
        if verb == "run" {
            command.envs([
                ("FETCHR_POD_NAMESPACE", "shop"),
                ("FETCHR_POD_NAME", "web-1"),
                ("FETCHR_POD_UID", "u1"),
                ("FETCHR_POD_IPS", "10.9.0.2,fd00:9::2"),
                ("FETCHR_PROXY", "shop/web"),
                ("FETCHR_OPERATOR", "127.0.0.1:1"),
                ("FETCHR_CONFIG_TIMEOUT", "1ms"),
                ("FETCHR_LOG_LEVEL", "Error"),
            ]);
        }
        command
    }

    /// Does something at the peer.
    fn peer<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.peer.send(Box::new(move || tell.send(work()).unwrap())).unwrap();
        told.recv_timeout(LONG).unwrap()
    }

    /// Ends the sidecar as the kubelet does; true if it went with success.
    fn end(&self) -> bool {
        let Some(mut sidecar) = self.sidecar.borrow_mut().take() else { return false };
        // SAFETY: a signal to a child that was not waited for, so the number is still its own.
        unsafe { libc::kill(i32::try_from(sidecar.id()).unwrap(), libc::SIGTERM) };
        sidecar.wait().unwrap().success()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(mut sidecar) = self.sidecar.borrow_mut().take() {
            let _ = sidecar.kill().and_then(|()| sidecar.wait().map(drop));
        }
    }
}

/// A folder that the sidecar's user may read, with the program, and one in it that it may write.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (built, here) = (env!("CARGO_BIN_EXE_fetchr-proxy"), folder.path().join("fetchr-proxy"));
    // The target folder may be one that the user can't enter; a link costs nothing where the folders share a disk.
    fs::hard_link(built, &here).or_else(|_| fs::copy(built, &here).map(drop)).unwrap();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(SIDECAR), Some(SIDECAR)).unwrap();
    folder
}

/// Starts a thread in a namespace of its own, joined to the caller's by a virtual cable, with a server on 80.
fn start_peer() -> mpsc::Sender<Job> {
    let (jobs, to_do) = mpsc::channel::<Job>();
    let (tell_thread, thread_id) = mpsc::channel();
    let (tell_connected, connected) = mpsc::channel();
    let (tell_up, up) = mpsc::channel();
    thread::spawn(move || {
        enter_new_namespace();
        // SAFETY: takes nothing and returns a number.
        tell_thread.send(unsafe { libc::gettid() }).unwrap();
        connected.recv().unwrap();
        for address in ["10.9.0.1/24", "fd00:9::1/64"] {
            ip(&["addr", "add", address, "dev", "peer", "nodad"]);
        }
        ip(&["link", "set", "peer", "up"]);
        serve("[::]:80", echo_head);
        tell_up.send(()).unwrap();
        to_do.into_iter().for_each(|job| job());
    });
    let thread_id = thread_id.recv().unwrap().to_string();
    ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "peer", "netns", &thread_id]);
    tell_connected.send(()).unwrap();
    up.recv().unwrap();
    jobs
}

/// Moves this thread, and what it starts, to a new network namespace that ends with them.
fn enter_new_namespace() {
    // SAFETY: takes a flag; a thread may leave its network namespace alone, others are not touched.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "these tests need root");
    ip(&["link", "set", "lo", "up"]);
}

fn serve(address: &str, answer: fn(TcpStream)) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || listener.incoming().for_each(|stream| drop(thread::spawn(move || answer(stream.unwrap())))));
}

/// Answers one request with its head.
fn echo_head(mut stream: TcpStream) {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let head = lines.collect::<Vec<_>>().join("\n");
    let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{head}", head.len());
    // A client that only looked whether the port is open is gone by now.
    let _ = stream.write_all(answer.as_bytes());
}

/// The first message of a TLS client that asks for a host.
fn hello(host: &'static str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut client = ClientConnection::new(config.into(), ServerName::try_from(host).unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn connect(address: &str) -> TcpStream {
    let address: SocketAddr = address.parse().unwrap();
    let stream = TcpStream::connect_timeout(&address, LONG).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// Sends a request and reads to the end; nothing if the connection is refused or reset.
fn ask(address: &str, request: &str) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let answer = TcpStream::connect_timeout(&address, LONG).and_then(|mut stream| {
        stream.set_read_timeout(Some(LONG))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    });
    answer.unwrap_or_default()
}

fn ip(arguments: &[&str]) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
