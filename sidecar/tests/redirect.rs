//! `fetchr-init` in network namespaces of their own: a pod, and a peer at the other end of a virtual cable. Needs root.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Command, Output},
    sync::mpsc,
    thread,
    time::Duration,
};

use socket2::SockRef;

const SIDECAR: u32 = 2733;
const BACKENDS: [&str; 2] = ["nftables", "iptables"];

#[test]
fn inbound_connections_reach_the_sidecar_with_their_destination() {
    for backend in BACKENDS {
        Pod::with(move |pod| {
            pod.init(backend, &["--inbound-ports", "8080"]);
            for (address, version) in [("10.9.0.2", "IPv4"), ("fd00:9::2", "IPv6")] {
                let answer = pod.peer_calls(address, 8080);
                assert_eq!(answer, format!("inbound {}", at(address, 8080)), "{backend} {version}");
            }
            assert_eq!(pod.peer_calls("10.9.0.2", 8081), "app", "{backend}: a port that was not given");
        });
    }
}

#[test]
fn outbound_connections_reach_the_sidecar_with_their_destination() {
    for backend in BACKENDS {
        Pod::with(move |pod| {
            pod.init(backend, &["--outbound-ports", "80,8000"]);
            for address in ["10.9.0.1", "fd00:9::1"] {
                assert_eq!(pod.calls(address, 80), format!("outbound {}", at(address, 80)), "{backend}");
                assert_eq!(pod.calls(address, 81), "peer", "{backend}: a port that was not given");
            }
        });
    }
}

#[test]
fn connections_of_the_sidecar_are_never_redirected() {
    for backend in BACKENDS {
        Pod::with(move |pod| {
            pod.init(backend, &["--inbound-ports", "8080", "--outbound-ports", "80,8080"]);
            for address in ["127.0.0.1", "::1", "10.9.0.2", "fd00:9::2"] {
                assert_eq!(pod.calls_as(SIDECAR, address, 8080), "app", "{backend} {address}");
            }
            for address in ["10.9.0.1", "fd00:9::1"] {
                assert_eq!(pod.calls_as(SIDECAR, address, 80), "peer", "{backend} {address}");
                assert_eq!(pod.calls_as(SIDECAR + 1, address, 80), format!("outbound {}", at(address, 80)), "{backend}");
            }
        });
    }
}

#[test]
fn calls_within_the_pod_are_left_alone() {
    for backend in BACKENDS {
        Pod::with(move |pod| {
            pod.init(backend, &["--inbound-ports", "8080", "--outbound-ports", "8080"]);
            for address in ["127.0.0.1", "::1", "10.9.0.2", "fd00:9::2"] {
                assert_eq!(pod.calls(address, 8080), "app", "{backend} {address}");
            }
        });
    }
}

#[test]
fn skipped_networks_are_left_alone() {
    for backend in BACKENDS {
        Pod::with(move |pod| {
            pod.init(backend, &["--outbound-ports", "80", "--skip-cidrs", "10.9.1.0/24,192.0.2.1,fd00:9:1::/64"]);
            assert_eq!(pod.calls("10.9.1.1", 80), "peer", "{backend}");
            assert_eq!(pod.calls("fd00:9:1::1", 80), "peer", "{backend}");
            assert_eq!(pod.calls("10.9.0.1", 80), "outbound 10.9.0.1:80", "{backend}");
            pod.init(backend, &["--outbound-ports", "80", "--skip-cidrs", "0.0.0.0/0"]);
            assert_eq!(pod.calls("10.9.0.1", 80), "peer", "{backend}: all of IPv4");
            assert_eq!(pod.calls("fd00:9::1", 80), "outbound [fd00:9::1]:80", "{backend}: none of IPv6");
        });
    }
}

#[test]
fn second_run_replaces_the_first() {
    for backend in BACKENDS {
        Pod::with(move |pod| {
            pod.init(backend, &["--inbound-ports", "8080,8081", "--outbound-ports", "80"]);
            let once = pod.init(backend, &["--inbound-ports", "8081"]);
            let rules = kernel_rules();
            assert_eq!(pod.peer_calls("10.9.0.2", 8080), "app", "{backend}: no longer given");
            assert_eq!(pod.peer_calls("10.9.0.2", 8081), "inbound 10.9.0.2:8081", "{backend}");
            assert_eq!(pod.calls("10.9.0.1", 80), "peer", "{backend}: no longer given");
            assert_eq!(pod.init(backend, &["--inbound-ports", "8081"]), once);
            assert_eq!(kernel_rules(), rules, "{backend}: a third run changes nothing");
        });
    }
}

#[test]
fn cleanup_leaves_nothing_of_either_backend() {
    Pod::with(|pod| {
        for backend in BACKENDS {
            pod.init(backend, &["--inbound-ports", "8080", "--outbound-ports", "80"]);
        }
        run("iptables-legacy", &["-t", "nat", "-A", "OUTPUT", "-p", "udp", "-j", "RETURN"]);
        for _ in 0..2 {
            let said = run(env!("CARGO_BIN_EXE_fetchr-init"), &["--cleanup"]);
            assert_eq!(said, "fetchr-init: no traffic is redirected any more\n");
            let left = kernel_rules();
            assert!(!left.to_lowercase().contains("fetchr"), "{left}");
            assert!(left.contains("-A OUTPUT -p udp -j RETURN"), "a rule of somebody else is gone: {left}");
        }
        assert_eq!(pod.peer_calls("10.9.0.2", 8080), "app");
        assert_eq!(pod.calls("10.9.0.1", 80), "peer");
    });
}

#[test]
fn pod_without_ipv6_is_no_error() {
    for backend in BACKENDS {
        Pod::with(move |pod| {
            for device in ["all", "lo"] {
                fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1").unwrap();
            }
            pod.init(backend, &["--inbound-ports", "8080", "--skip-cidrs", "fd00::/8", "--outbound-ports", "80"]);
            assert_eq!(pod.peer_calls("10.9.0.2", 8080), "inbound 10.9.0.2:8080", "{backend}");
            assert_eq!(pod.calls("10.9.0.1", 80), "outbound 10.9.0.1:80", "{backend}");
        });
    }
}

#[test]
fn iptables_steps_in_where_nftables_does_not_work() {
    Pod::with(|pod| {
        enter_new_mounts();
        replace_by_false("/usr/sbin/nft");
        let said = pod.init("auto", &["--inbound-ports", "8080"]);
        assert!(said.ends_with("set and checked by iptables-legacy)\n"), "{said}");
        assert_eq!(pod.peer_calls("10.9.0.2", 8080), "inbound 10.9.0.2:8080");

        replace_by_false("/usr/sbin/xtables-legacy-multi");
        let output = Command::new(env!("CARGO_BIN_EXE_fetchr-init")).args(["--inbound-ports", "8080"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        for part in ["no way to set redirect rules", "nftables: /usr/sbin/nft -f - failed", "iptables-legacy: /usr/sbin/xtables"]
        {
            assert!(said.contains(part), "{said}");
        }
    });
}

#[test]
fn settings_come_from_the_environment() {
    Pod::with(|pod| {
        let output = Command::new(env!("CARGO_BIN_EXE_fetchr-init"))
            .envs([("FETCHR_INBOUND_PORTS", "8080,8081"), ("FETCHR_SKIP_INBOUND_PORTS", "8081"), ("FETCHR_OUTBOUND_PORTS", "")])
            .envs([("FETCHR_SKIP_CIDRS", "10.0.0.0/8"), ("FETCHR_PROXY_UID", "2733"), ("FETCHR_INBOUND_PORT", "4610")])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let expected = "inbound ports 8080 go to 4610, outbound ports none to 4611 (2 rules set and checked by nftables)";
        assert_eq!(said, format!("fetchr-init: {expected}\n"));
        assert_eq!(pod.peer_calls("10.9.0.2", 8080), "inbound 10.9.0.2:8080");
        assert_eq!(pod.peer_calls("10.9.0.2", 8081), "app");
    });
}

#[test]
fn missing_capability_is_said_and_nothing_is_set() {
    Pod::with(|_| {
        let missing = |capability: &str, arguments: &[&str]| {
            let drop = format!("-{capability}");
            let output = Command::new("setpriv")
                .args(["--bounding-set", &drop, "--inh-caps", &drop, env!("CARGO_BIN_EXE_fetchr-init")])
                .args(["--inbound-ports", "8080"])
                .args(arguments)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(1));
            String::from_utf8(output.stderr).unwrap()
        };
        for arguments in [&[][..], &["--cleanup"]] {
            let said = missing("net_admin", arguments);
            assert!(said.starts_with("fetchr-init: the container lacks the capability NET_ADMIN: give fetchr-init "), "{said}");
        }
        let said = missing("net_raw", &["--backend", "iptables"]);
        assert!(said.starts_with("fetchr-init: the container lacks the capability NET_RAW: "), "{said}");
        assert!(!kernel_rules().to_lowercase().contains("fetchr"));
    });
}

#[test]
fn wrong_settings_are_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_fetchr-init")).env("FETCHR_INBOUND_PORTS", "80,http").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--inbound-ports") && said.contains("`http` is not a TCP port"), "{said}");
}

#[test]
fn print_shows_the_rules_and_sets_nothing() {
    Pod::with(|_| {
        let init =
            |backend| run(env!("CARGO_BIN_EXE_fetchr-init"), &["--print", "--backend", backend, "--inbound-ports", "8080"]);
        assert!(init("auto").contains("tcp dport 8080 redirect to :4610"));
        assert!(init("iptables").contains("-A FETCHR_INBOUND -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 4610"));
        assert!(!kernel_rules().to_lowercase().contains("fetchr"));
    });
}

/// A network namespace with an application on 8080 and 8081 and a sidecar on 4610 and 4611; all answer with who they are.
struct Pod {
    peer: mpsc::Sender<(SocketAddr, mpsc::Sender<String>)>,
}

impl Pod {
    /// Runs a test on a thread that lives in the pod's namespace; what it starts does too.
    fn with(test: impl FnOnce(&Pod) + Send + 'static) {
        let result = thread::spawn(|| {
            enter_new_namespace();
            let pod = Pod::start();
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
        for net in ["10.9.1.0/24", "fd00:9:1::/64"] {
            ip(&["route", "add", net, "dev", "eth0"]);
        }
        for address in ["[::]:8080", "[::]:8081"] {
            serve(address, |_| "app".to_owned());
        }
        serve("[::]:4610", |stream| format!("inbound {}", original_destination(stream)));
        for address in ["127.0.0.1:4611", "[::1]:4611"] {
            serve(address, |stream| format!("outbound {}", original_destination(stream)));
        }
        Self { peer }
    }

    /// Runs `fetchr-init` and returns what it says.
    fn init(&self, backend: &str, arguments: &[&str]) -> String {
        run(env!("CARGO_BIN_EXE_fetchr-init"), &[&["--backend", backend], arguments].concat())
    }

    /// The peer connects, and hears this.
    fn peer_calls(&self, address: &str, port: u16) -> String {
        let (answer, heard) = mpsc::channel();
        self.peer.send((at(address, port), answer)).unwrap();
        heard.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    /// The application connects, and hears this.
    fn calls(&self, address: &str, port: u16) -> String {
        hear(at(address, port))
    }

    /// A process of the user connects, and hears this.
    fn calls_as(&self, uid: u32, address: &str, port: u16) -> String {
        let to = at(address, port);
        thread::spawn(move || {
            // SAFETY: takes a number and changes the file-system user of this thread only, which owns the sockets that it makes.
            unsafe { libc::setfsuid(uid) };
            hear(to)
        })
        .join()
        .unwrap()
    }
}

/// Starts a thread in a namespace of its own, joined to the caller's by a virtual cable, that listens on 80 and 81 and
/// connects where it is told to.
fn start_peer() -> mpsc::Sender<(SocketAddr, mpsc::Sender<String>)> {
    let (calls, to_make) = mpsc::channel::<(SocketAddr, mpsc::Sender<String>)>();
    let (tell_thread, thread_id) = mpsc::channel();
    let (tell_connected, connected) = mpsc::channel();
    let (tell_up, up) = mpsc::channel();
    thread::spawn(move || {
        enter_new_namespace();
        // SAFETY: takes nothing and returns a number.
        tell_thread.send(unsafe { libc::gettid() }).unwrap();
        connected.recv().unwrap();
        for address in ["10.9.0.1/24", "10.9.1.1/24", "fd00:9::1/64", "fd00:9:1::1/64"] {
            ip(&["addr", "add", address, "dev", "peer", "nodad"]);
        }
        ip(&["link", "set", "peer", "up"]);
        for address in ["[::]:80", "[::]:81"] {
            serve(address, |_| "peer".to_owned());
        }
        tell_up.send(()).unwrap();
        for (address, answer) in to_make {
            let _ = answer.send(hear(address));
        }
    });
    let thread_id = thread_id.recv().unwrap().to_string();
    ip(&["link", "add", "eth0", "type", "veth", "peer", "name", "peer", "netns", &thread_id]);
    tell_connected.send(()).unwrap();
    up.recv().unwrap();
    calls
}

/// Moves this thread, and what it starts, to a new network namespace that ends with them.
fn enter_new_namespace() {
    // SAFETY: takes a flag; a thread may leave its network namespace alone, others are not touched.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "these tests set redirect rules in network namespaces of their own: run them as root");
    ip(&["link", "set", "lo", "up"]);
}

/// Gives this thread, and what it starts, its own view of the file system.
fn enter_new_mounts() {
    // SAFETY: takes a flag; other threads keep their view.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(result, 0, "these tests need root");
    run("mount", &["--make-rprivate", "/"]);
}

fn replace_by_false(program: &str) {
    run("mount", &["--bind", "/usr/bin/false", program]);
}

/// Answers every connection with one text.
fn serve(address: &str, answer: fn(&TcpStream) -> String) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let text = answer(&stream);
            let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.shutdown(Shutdown::Write));
        }
    });
}

/// Connects and reads to the end.
fn hear(address: SocketAddr) -> String {
    let deadline = Duration::from_secs(5);
    let connected = TcpStream::connect_timeout(&address, deadline);
    let text = connected.and_then(|mut stream| {
        stream.set_read_timeout(Some(deadline))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    text.unwrap_or_else(|error| format!("{address}: {error}"))
}

fn original_destination(stream: &TcpStream) -> String {
    let socket = SockRef::from(stream);
    let address = match stream.peer_addr().unwrap().ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    address.unwrap().as_socket().unwrap().to_string()
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Everything that could redirect in this namespace. The counters of chains are left out.
fn kernel_rules() -> String {
    let saved = run("iptables-legacy-save", &["-t", "nat"]) + &run("ip6tables-legacy-save", &["-t", "nat"]);
    let saved = saved.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(" [").next().unwrap_or(line));
    run("nft", &["list", "ruleset"]) + &saved.collect::<Vec<_>>().join("\n")
}

fn ip(arguments: &[&str]) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(program).args(arguments).output().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}
