//! TLS peers that mean harm, or have grown old: floods of handshakes, renegotiation, early data, tickets of another host, certificates that
//! change all the time or have expired.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use crds::proxy::{ListenerTls, UpstreamTls};
use futures::future::join_all;
use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, HandshakeKind, NamedGroup,
    client::{ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue},
    pki_types::ServerName,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::{
    pki::{Pki, connect, listener_tls, shown},
    support::{LONG, Origin, Proxy, eventually, read_response},
    tls_upstream,
};

const GET: &str = "GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n";

const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

/// A proxy that speaks TLS with its clients.
async fn proxy(tls: ListenerTls) -> Proxy {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    Proxy::with(&format!("http://{}", origin.address), |settings| settings.interception.listeners[0].tls = Some(tls))
}

fn handshakes(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric(&format!("fetchr_tls_handshakes_total{{peer=\"client\",result=\"{result}\"}}"))
}

/// The first message of a client.
fn hello(pki: &Pki) -> Vec<u8> {
    let mut client = ClientConnection::new(Arc::new(pki.client(&[])), "shop.example".try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

async fn served(proxy: &Proxy, client: &Arc<ClientConfig>) -> io::Result<()> {
    let mut stream = connect(proxy.address, client, "shop.example").await?;
    stream.write_all(GET.as_bytes()).await?;
    assert_eq!(timeout(LONG, read_response(&mut stream, true)).await.expect("an answer in time").status, 200);
    Ok(())
}

#[tokio::test]
async fn handshakes_that_never_end_do_not_hold_up_requests() {
    const CLIENTS: usize = 30;
    let pki = Pki::new();
    let tls = listener_tls(vec![pki.issue("shop", &["shop.example"])]);
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| {
        let mut clear = settings.interception.listeners[0].clone();
        clear.name = "clear".to_owned();
        settings.interception.listeners[0].tls = Some(tls);
        settings.interception.listeners.push(clear);
    });
    let clear = proxy.server.listeners()[1].1;
    // Each sends the same first message, which costs it nothing, and leaves when it is answered.
    let (hello, ends, shaken) = (hello(&pki), Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let flood: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (hello, ends, shaken, address) = (hello.clone(), Arc::clone(&ends), Arc::clone(&shaken), proxy.address);
            tokio::spawn(async move {
                let mut took = Vec::new();
                while !ends.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    // Beyond the cap on connections it is reset.
                    if stream.write_all(&hello).await.is_ok() && stream.read_u8().await.is_ok() {
                        shaken.fetch_add(1, Ordering::Relaxed);
                        took.push(start.elapsed());
                    }
                }
                took
            })
        })
        .collect();
    eventually("the flood", || shaken.load(Ordering::Relaxed) > 2 * CLIENTS).await;
    let mut client = TcpStream::connect(clear).await.unwrap();
    let mut requests = Vec::new();
    for _ in 0..100 {
        let start = Instant::now();
        client.write_all(GET.as_bytes()).await.unwrap();
        assert_eq!(timeout(LONG, read_response(&mut client, true)).await.expect("an answer in time").status, 200);
        requests.push(start.elapsed());
    }
    ends.store(true, Ordering::Relaxed);
    let mut flooded: Vec<_> = join_all(flood).await.into_iter().flat_map(Result::unwrap).collect();
    requests.sort_unstable();
    flooded.sort_unstable();
    let (request, p99, handshake) = (requests[50], requests[98], flooded[flooded.len() / 2]);
    println!("{} handshakes, half of them within {handshake:?}; requests {request:?}, p99 {p99:?}", flooded.len());
    assert!(
        request < handshake / 2,
        "a request waits for few handshakes, a handshake for all before it: {request:?}, {handshake:?}"
    );
}

#[tokio::test]
async fn first_message_without_an_end_is_refused_and_others_are_served() {
    let pki = Pki::new();
    let proxy = proxy(listener_tls(vec![pki.issue("shop", &["shop.example"])])).await;
    let mut record = vec![HANDSHAKE, 3, 1, 0x40, 0];
    record.resize(5 + (16 << 10), b'x');
    record[5..9].copy_from_slice(&[1, 0xff, 0xff, 0xff]);
    let mut client = proxy.client().await;
    // It may be closed before all is written.
    let _ = client.0.write_all(&record.repeat(64)).await;
    served(&proxy, &Arc::new(pki.client(&[]))).await.unwrap();
    client.rest().await;
    eventually("the refusal", || {
        proxy.metric("fetchr_errors_total{direction=\"inbound\",reason=\"tls_handshake_failed\"}") == 1.0
    })
    .await;
}

/// Keeps the sessions of all servers as those of one.
#[derive(Debug)]
struct AllAlike(ClientSessionMemoryCache);

fn one() -> ServerName<'static> {
    ServerName::try_from("one.example").unwrap()
}

impl ClientSessionStore for AllAlike {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(one(), group);
    }
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&one())
    }
    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(one(), value);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&one())
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&one());
    }
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(one(), value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&one())
    }
}

#[tokio::test]
async fn ticket_of_one_host_opens_no_session_with_another() {
    let pki = Pki::new();
    let certificates = vec![pki.issue("shop", &["shop.example"]), pki.issue("admin", &["admin.example"])];
    let proxy = proxy(listener_tls(certificates)).await;
    for mut client in [pki.client(&[]), pki.old_client()] {
        client.resumption = Resumption::store(Arc::new(AllAlike(ClientSessionMemoryCache::new(8))));
        let client = Arc::new(client);
        for (host, kind) in [
            ("shop.example", HandshakeKind::Full),
            ("shop.example", HandshakeKind::Resumed),
            ("admin.example", HandshakeKind::Full),
        ] {
            let mut stream = connect(proxy.address, &client, host).await.unwrap();
            stream.write_all(GET.as_bytes()).await.unwrap();
            assert_eq!(timeout(LONG, read_response(&mut stream, true)).await.expect("an answer in time").status, 200);
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind), "{host}");
            if kind == HandshakeKind::Full {
                assert!(shown(&stream).contains(host));
            }
        }
    }
}

#[tokio::test]
async fn nobody_is_invited_to_send_early_data() {
    let pki = Pki::new();
    let proxy = proxy(listener_tls(vec![pki.issue("shop", &["shop.example"])])).await;
    let mut client = pki.client(&[]);
    client.enable_early_data = true;
    let client = Arc::new(client);
    for _ in 0..2 {
        let mut early = ClientConnection::new(Arc::clone(&client), "shop.example".try_into().unwrap()).unwrap();
        assert!(early.early_data().is_none());
        served(&proxy, &client).await.unwrap();
    }
    assert_eq!(handshakes(&proxy, "resumed"), 1.0, "there was a session that could have had some");
}

/// Seals a message of TLS 1.2 as a client does.
fn seal(secrets: &(u64, ConnectionTrafficSecrets), count: u64, kind: u8, message: &[u8]) -> Vec<u8> {
    let (algorithm, key, iv) = match &secrets.1 {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
        _ => panic!("another cipher"),
    };
    let number = (secrets.0 + count).to_be_bytes();
    let mut nonce: [u8; 12] = iv.as_ref().try_into().unwrap();
    nonce[4..].iter_mut().zip(number).for_each(|(byte, number)| *byte ^= number);
    let length = u16::try_from(message.len()).unwrap().to_be_bytes();
    let aad = [&number[..], &[kind, 3, 3], &length].concat();
    let mut sealed = message.to_vec();
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).unwrap());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut sealed).unwrap();
    let length = u16::try_from(8 + sealed.len()).unwrap().to_be_bytes();
    [&[kind, 3, 3][..], &length, &nonce[4..], &sealed].concat()
}

#[tokio::test]
async fn renegotiation_is_refused_and_asking_again_ends_the_connection() {
    let pki = Pki::new();
    let proxy = proxy(listener_tls(vec![pki.issue("shop", &["shop.example"])])).await;
    let hello = hello(&pki);
    let mut client = pki.old_client();
    client.enable_secret_extraction = true;
    let stream = connect(proxy.address, &Arc::new(client), "shop.example").await.unwrap();
    let (mut socket, session) = stream.into_inner();
    let secrets = session.dangerous_extract_secrets().unwrap().tx;
    for count in 0..2 {
        socket.write_all(&seal(&secrets, count, HANDSHAKE, &hello[5..])).await.unwrap();
    }
    let mut said = Vec::new();
    let _ = timeout(LONG, socket.read_to_end(&mut said)).await.expect("an end in time"); // a reset is one, too
    let mut kinds = Vec::new();
    while let [kind, _, _, high, low, ..] = said[..] {
        kinds.push(kind);
        said.drain(..(5 + usize::from(high) * 256 + usize::from(low)).min(said.len()));
    }
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == ALERT), "{kinds:?}");
    served(&proxy, &Arc::new(pki.client(&[]))).await.unwrap();
}

#[tokio::test]
async fn certificate_that_changes_all_the_time_fails_no_handshake() {
    let pki = Pki::new();
    let proxy = proxy(listener_tls(vec![pki.issue("shop", &["shop.example"])])).await;
    let ends = AtomicBool::new(false);
    let taken = || proxy.metric("fetchr_tls_reloads_total{result=\"taken\"}");
    let clients = async {
        let (mut count, start) = (0, Instant::now());
        while taken() < 5.0 || count < 200 {
            let client = Arc::new(pki.client(&[]));
            for shaken in join_all((0..8).map(|_| served(&proxy, &client))).await {
                shaken.unwrap();
                count += 1;
            }
            assert!(start.elapsed() < LONG, "{count} handshakes, {} certificates", taken());
        }
        ends.store(true, Ordering::Relaxed);
    };
    let rotation = async {
        while !ends.load(Ordering::Relaxed) {
            pki.issue("shop", &["shop.example"]);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::join!(clients, rotation);
    assert_eq!(proxy.metric("fetchr_errors_total{direction=\"inbound\",reason=\"tls_handshake_failed\"}"), 0.0);
}

#[tokio::test]
async fn expired_certificate_is_refused_on_either_side() {
    let pki = Pki::new();
    let tls = ListenerTls { client_ca: Some(pki.ca()), ..listener_tls(vec![pki.issue("shop", &["shop.example"])]) };
    let listener = proxy(tls).await;
    let expired = pki.client_with(&pki.issue_expired("client", &["client.example"]));
    let mut refused = connect(listener.address, &Arc::new(expired), "shop.example").await.unwrap();
    let _ = refused.write_all(GET.as_bytes()).await; // TLS 1.3 tells the client after its handshake
    assert!(refused.read_u8().await.is_err());
    eventually("the refusal", || handshakes(&listener, "bad_certificate") == 1.0).await;
    let (address, connections) =
        tls_upstream::versions(pki.server(&pki.issue_expired("app", &["127.0.0.1"]), &["h2", "http/1.1"], false)).await;
    let upstream = tls_upstream::proxy(address, &pki, |_: &mut UpstreamTls| {});
    let answer = upstream.ask(GET).await;
    assert!(answer.status == 502 && answer.field("proxy-status").contains("tls_certificate_error"), "{}", answer.head);
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}
