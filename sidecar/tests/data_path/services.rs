//! Services whose endpoints an operator has told of.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sidecar::{server::NameServers, services::Services};
use tokio::{io::AsyncWriteExt, net::TcpListener};
use wire::v1;

use crate::{
    dns::{Names, Says},
    support::{Origin, Proxy, nobody, read_head},
};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";

/// An origin that answers alike, and how many requests came.
async fn origin(answer: &'static str) -> (SocketAddr, Arc<AtomicUsize>) {
    let came = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&came);
    let origin = Origin::scripted(move |mut stream, _| {
        let count = Arc::clone(&count);
        async move {
            while read_head(&mut stream).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    (origin.address, came)
}

fn v4(address: SocketAddr) -> [u8; 4] {
    match address {
        SocketAddr::V4(address) => address.ip().octets(),
        SocketAddr::V6(_) => panic!("IPv4 is expected"),
    }
}

/// Service `shop/carts` at `cluster`, with these endpoints.
fn tell(proxy: &Proxy, cluster: SocketAddr, spoken: v1::Spoken, endpoints: &[SocketAddr]) {
    let endpoint = |address: &SocketAddr| v1::Endpoints {
        port: address.port().into(),
        v4: v4(*address).to_vec().into(),
        ..v1::Endpoints::default()
    };
    let port = v1::ServicePort {
        port: cluster.port().into(),
        spoken: spoken.into(),
        endpoints: endpoints.iter().map(endpoint).collect(),
    };
    let service = v1::Service {
        name: Some(v1::ServiceName { namespace: "shop".to_owned(), name: "carts".to_owned() }),
        cluster_ips: vec![v4(cluster).to_vec().into()],
        ports: vec![port],
    };
    let told = v1::Services { whole: true, changed: vec![service], ..v1::Services::default() };
    let services = Services::after(None, told, "shop", &proxy.config.services()).unwrap();
    proxy.config.follow(Arc::new(services));
}

fn nowhere() -> NameServers {
    NameServers::Fixed { servers: Vec::new(), search: Vec::new(), ndots: 1 }
}

fn counts(came: &[Arc<AtomicUsize>]) -> Vec<usize> {
    came.iter().map(|came| came.load(Ordering::SeqCst)).collect()
}

fn events(proxy: &Proxy, event: &str) -> f64 {
    let labels = format!("route=\"shop/test/rule\",section=\"loadBalancing\",event=\"{event}\",mode=\"enforce\"");
    proxy.metric(&format!("fetchr_upstream_policy_events_total{{{labels}}}"))
}

#[tokio::test]
async fn requests_of_one_connection_are_spread_over_endpoints_that_come_and_go() {
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(origin(OK).await);
    }
    let (addresses, came): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    let cluster = nobody().await;
    let proxy = Proxy::to_name(&format!("http://carts:{}", cluster.port()), nowhere(), |_| {});
    proxy.apply(r#"[{"name": "rule", "loadBalancing": {"policy": "RoundRobin"}}]"#);
    let mut client = proxy.client().await;
    let plan = proxy.config.load().digest().to_owned();
    for (endpoints, expected) in [(&addresses[..2], [6, 6, 0]), (&addresses[1..], [6, 12, 6])] {
        tell(&proxy, cluster, v1::Spoken::Unknown, endpoints);
        for _ in 0..12 {
            client.send(GET).await;
            assert_eq!(client.response().await.status, 200);
        }
        assert_eq!(counts(&came), expected);
    }
    assert_eq!(proxy.config.load().digest(), plan);
}

#[tokio::test]
async fn endpoint_that_fails_is_left_out() {
    let ((good, served), (bad, failed)) = (origin(OK).await, origin(BUSY).await);
    let cluster = nobody().await;
    let proxy = Proxy::to_name(&format!("http://carts.shop.svc:{}", cluster.port()), nowhere(), |_| {});
    proxy.apply(
        r#"[{"name": "rule", "loadBalancing": {"policy": "RoundRobin", "ejection": {"consecutiveFailures": 2}}, "retry": {}}]"#,
    );
    tell(&proxy, cluster, v1::Spoken::Unknown, &[good, bad]);
    for _ in 0..20 {
        assert_eq!(proxy.ask(GET).await.status, 200, "the further try goes to the other endpoint");
    }
    assert_eq!((counts(&[failed]), counts(&[served]), events(&proxy, "ejected")), (vec![2], vec![20], 1.0));
}

#[tokio::test]
async fn request_that_reaches_no_endpoint_goes_to_the_services_own_address() {
    let names = Names::serve().await;
    let (own, came) = origin(OK).await;
    names.set("carts.shop.svc.cluster.local", Says::Addresses(vec![own.ip()], 60));
    let upstream = format!("http://carts.shop.svc.cluster.local:{}", own.port());
    let proxy = Proxy::to_name(&upstream, names.servers(&[], 1), |_| {});
    proxy.apply(r#"[{"name": "rule", "loadBalancing": {"ejection": {"maxEjectedPercent": 0}}}]"#);
    tell_of_domain(&proxy, own, &[nobody().await]);
    for request in ["POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", GET] {
        assert_eq!(proxy.ask(request).await.status, 200, "nothing of it was sent, so any method may go");
    }
    assert_eq!((counts(&[came]), events(&proxy, "unreached")), (vec![2], 2.0));
}

fn tell_of_domain(proxy: &Proxy, cluster: SocketAddr, endpoints: &[SocketAddr]) {
    tell(proxy, cluster, v1::Spoken::Unknown, endpoints);
    let domain = v1::Services { cluster_domain: "cluster.local".to_owned(), ..v1::Services::default() };
    let services = Services::after(Some(&proxy.config.services()), domain, "shop", &proxy.config.services()).unwrap();
    proxy.config.follow(Arc::new(services));
}

#[tokio::test]
async fn without_endpoints_requests_go_as_they_went() {
    let names = Names::serve().await;
    let (own, came) = origin(OK).await;
    names.set("carts.shop", Says::Addresses(vec![own.ip()], 60));
    let proxy = Proxy::to_name(&format!("http://carts.shop:{}", own.port()), names.servers(&[], 1), |_| {});
    proxy.apply(r#"[{"name": "rule", "loadBalancing": {}}]"#);
    assert_eq!(proxy.ask(GET).await.status, 200);
    tell(&proxy, own, v1::Spoken::Unknown, &[]);
    assert_eq!(proxy.ask(GET).await.status, 200);
    assert_eq!(counts(&[came]), [2]);
}

#[tokio::test]
async fn requests_to_an_address_of_a_service_are_spread_whatever_their_host() {
    let (one, other) = (origin(OK).await, origin(OK).await);
    let cluster = nobody().await;
    let proxy = Proxy::forward();
    proxy.apply(r#"[{"name": "rule", "loadBalancing": {"policy": "RoundRobin"}}]"#);
    tell(&proxy, cluster, v1::Spoken::Unknown, &[one.0, other.0]);
    for _ in 0..6 {
        let request = format!("GET http://{cluster}/ HTTP/1.1\r\nhost: {cluster}\r\n\r\n");
        assert_eq!(proxy.ask(&request).await.status, 200);
    }
    assert_eq!(counts(&[one.1, other.1]), [3, 3]);
}

/// An origin that speaks HTTP/2 in clear and nothing else; it says by which version a request came.
async fn h2c() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let answer = service_fn(async |request: Request<Incoming>| {
                assert_eq!(request.version(), Version::HTTP_2);
                Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from("h2c")))
            });
            let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), answer);
            tokio::spawn(serving);
        }
    });
    address
}

#[tokio::test]
async fn port_that_speaks_h2c_gets_it_by_prior_knowledge_whatever_came() {
    let address = h2c().await;
    let proxy = Proxy::forward();
    let request = format!("GET http://{address}/ HTTP/1.1\r\nhost: {address}\r\n\r\n");
    assert_eq!(proxy.ask(&request).await.status, 502, "it speaks no HTTP/1");
    tell(&proxy, address, v1::Spoken::H2c, &[]);
    assert_eq!(proxy.ask(&request).await.body, b"h2c");
    tell(&proxy, address, v1::Spoken::H2c, &[address]);
    proxy.apply(r#"[{"name": "rule", "loadBalancing": {}}]"#);
    assert_eq!(proxy.ask(&request).await.body, b"h2c", "by an endpoint");

    let by_url = Proxy::with(&format!("http://{address}"), |_| {});
    tell(&by_url, address, v1::Spoken::H2c, &[]);
    assert_eq!(by_url.ask(GET).await.status, 502, "the URL says HTTP/1.1");
}
