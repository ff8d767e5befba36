//! The cache of a proxy whose program is replaced: what the one worker purges, the other does not answer with.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    time::Instant,
};

use crate::{
    cache_files::{CACHING, Origin, cache, caching},
    run::{DEADLINE, Proxy},
    supervised::{installed, replace, upgrade},
    support::FETCHR,
};

/// A connection that stays with the worker that accepted it.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn new(proxy: &Proxy) -> Self {
        let stream = TcpStream::connect(proxy.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut connection = Self(BufReader::new(stream));
        connection.ask("GET", "/b");
        connection
    }

    /// The head of the answer.
    fn ask(&mut self, method: &str, path: &str) -> String {
        write!(self.0.get_ref(), "{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).unwrap(), 0, "{head}");
        }
        let head = head.to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        self.0.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
        head
    }
}

#[test]
fn purge_during_an_upgrade_holds_for_both_workers() {
    let (_folder, program) = installed();
    let origin = Origin::start("");
    let policy = caching().replace(CACHING, &CACHING.replace("cache: {", "cache: {purgeMethod: {allowedCIDRs: [127.0.0.0/8]}, "));
    // Long enough for all that follows.
    let proxy = Proxy::start_as(&program, &policy, origin.port, "{delay: 1m, timeout: 1m}");
    proxy.get("/a");
    let mut old: Vec<Connection> = (0..4).map(|_| Connection::new(&proxy)).collect();
    assert!(old[3].ask("GET", "/a").contains("fetchr; hit"));
    replace(&program, Path::new(FETCHR));
    let said = upgrade(&proxy);
    assert_eq!(said.code, 0, "{said:?} {}", proxy.log());

    // The supervisor has told both workers by now; the old one may not have heard it yet, until the new one may purge.
    let (mut purged, began) = (cache(&proxy, "purge", &["--all"]), Instant::now());
    while purged.code != 0 {
        assert!(began.elapsed() < DEADLINE && purged.stderr.contains("503") && purged.stderr.contains("Ask again"), "{purged:?}");
        purged = cache(&proxy, "purge", &["--all"]);
    }
    let asked = origin.asked();
    let answer = old[0].ask("GET", "/a");
    assert!(answer.contains("fwd=bypass; detail=handover") && origin.asked() == asked + 1, "{answer}");
    let refused = old[1].ask("PURGE", "/a");
    assert!(refused.starts_with("http/1.1 503"), "{refused}");
    // It keeps nothing either.
    assert!(old[2].ask("GET", "/a").contains("detail=handover") && origin.asked() == asked + 2);
    // The new one has none of it, and keeps what it gets.
    assert!(proxy.get("/a").contains("fwd=uri-miss; stored"));
    assert!(proxy.get("/a").contains("fetchr; hit"));
    let mut new = Connection::new(&proxy);
    assert!(new.ask("PURGE", "/a").starts_with("http/1.1 200"));
    assert!(proxy.get("/a").contains("fwd=uri-miss; stored"));
}
