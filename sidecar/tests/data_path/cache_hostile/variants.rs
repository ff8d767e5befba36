//! `Vary`, and requests made to break it.

use super::{ALL, Site, kept, ok};
use crate::support::{Proxy, Response, field};

/// A request whose fields are any bytes that HTTP allows.
async fn ask_bytes(proxy: &Proxy, path: &str, fields: &[u8]) -> Response {
    let mut client = proxy.client().await;
    client.send([format!("GET {path} HTTP/1.1\r\nhost: a\r\n").as_bytes(), fields, b"\r\n"].concat()).await;
    client.response().await
}

#[tokio::test]
async fn thousand_variants_are_bounded_and_push_nothing_else_out() {
    let site =
        Site::start(ALL, |head, _| ok("cache-control: max-age=600\r\nvary: x-v\r\n", field(head, "x-v").unwrap_or("none"))).await;
    for path in ["/b", "/c?d"] {
        assert_eq!(site.get(path, "x-v: 7\r\n").await.text(), "7");
    }
    let mut client = site.proxy.client().await;
    for number in 0..1000 {
        client.send(super::get("/a", &format!("x-v: {number}\r\n"))).await;
        assert_eq!(client.response().await.text(), number.to_string());
    }
    assert_eq!(site.proxy.metric("fetchr_cache_objects"), 64.0 + 2.0);
    let asked = site.requests();
    for (path, value) in [("/b", "7"), ("/c?d", "7"), ("/a", "999"), ("/a", "936")] {
        let response = site.get(path, &format!("x-v: {value}\r\n")).await;
        assert_eq!(response.text(), value);
        assert!(response.field("cache-status").contains("hit"), "{path} {value}: {}", response.head);
    }
    assert_eq!(site.requests(), asked);
    assert_eq!(site.get("/a", "x-v: 935\r\n").await.text(), "935");
    assert_eq!(site.requests(), asked + 1, "the oldest went");
}

#[tokio::test]
async fn vary_that_changes_between_answers_gives_nobody_the_answer_to_other_fields() {
    // Each answer says which fields it is for, and their values.
    const VARY: [&str; 4] = ["x-a", "x-a, x-b", "x-b", "X-B,x-a"];
    let site = Site::start(ALL, |head, number| {
        let vary = VARY[number % VARY.len()];
        let said: Vec<String> = vary
            .to_ascii_lowercase()
            .split(',')
            .map(|name| format!("{}={}", name.trim(), field(head, name.trim()).unwrap_or("none")))
            .collect();
        ok(&format!("cache-control: max-age=600\r\nvary: {vary}\r\n"), &said.join(";"))
    })
    .await;
    let mut client = site.proxy.client().await;
    let mut hits = 0;
    for step in 0..400_usize {
        let (a, b) = (step % 3, step / 3 % 4);
        let anew = if step % 7 == 0 { "cache-control: no-cache\r\n" } else { "" };
        client.send(super::get("/", &format!("x-a: {a}\r\nx-b: {b}\r\n{anew}"))).await;
        let response = client.response().await;
        hits += usize::from(response.field("cache-status").contains("hit"));
        for said in response.text().split(';') {
            assert!([format!("x-a={a}"), format!("x-b={b}")].contains(&said.to_owned()), "{step}: {}", response.text());
        }
    }
    assert!(hits > 20, "{hits}");
}

#[tokio::test]
async fn nobody_gets_a_coding_that_it_does_not_take() {
    let answer = |head: &str, _: usize| {
        let accepted = field(head, "accept-encoding").unwrap_or_default().to_ascii_lowercase();
        let takes = |coding: &str| {
            accepted.split(',').any(|member| {
                let (name, weight) = member.split_once(';').unwrap_or((member, "q=1"));
                name.trim() == coding && weight.trim().trim_start_matches("q=").parse::<f32>().is_ok_and(|weight| weight > 0.0)
            })
        };
        let coding = ["br", "gzip", "x-gzip"].into_iter().find(|coding| takes(coding)).unwrap_or("identity");
        ok("cache-control: max-age=600\r\nvary: accept-encoding\r\n", coding)
    };
    let cached = Site::start(ALL, answer).await;
    let bare = Site::start("[]", answer).await;
    let values = [
        "",
        "gzip",
        "GZIP",
        "gzip;q=0",
        "gzip;q=0.0",
        "gzip;q=0.001",
        "gzip;q=1.0",
        "gzip ; q=0.5",
        "br, gzip",
        "gzip,br",
        "gzip;q=0,br",
        "br;q=0, gzip",
        "gzip, gzip;q=0",
        "gzip;q=0, gzip",
        "*",
        "*;q=0",
        "identity;q=0, gzip",
        "x-gzip",
        "gzip;x=1",
        "gzip;q=2",
        "gzip;q=0.0000",
        "gzip;q=",
        "gzip;q",
        ";gzip",
        "gzi p",
        "\"gzip\"",
        ", ,gzip",
        "deflate",
        "gzip;q=0.5;q=0",
        "br\tgzip",
    ];
    let same = |coding: &str| if coding == "x-gzip" { "gzip" } else { coding }.to_owned();
    for round in 0..2 {
        for at in 0..values.len() {
            let value = values[(at * 7 + round) % values.len()];
            let lines = format!("accept-encoding: {value}\r\n");
            let (got, expected) = (cached.get("/", &lines).await, bare.get("/", &lines).await);
            assert_eq!(same(got.text()), same(expected.text()), "{value:?}");
        }
    }
    assert!(cached.requests() < bare.requests());
}

#[tokio::test]
async fn values_of_any_bytes_and_length_select_only_their_like() {
    // The origin says the values that it got, in digits.
    let digits = |lines: &[u8]| lines.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let values: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"a".to_vec(),
        b"A".to_vec(),
        b"a,b".to_vec(),
        b"a;b".to_vec(),
        b"\"a".to_vec(),
        b"a\tb".to_vec(),
        vec![0x80],
        vec![0xff, 0xfe, b'a'],
        b"\xc3\xa9".to_vec(),
        vec![b'x'; 4000],
        vec![b'x'; 4001],
        [vec![b'x'; 4000], vec![b'y']].concat(),
        vec![b'z'; 9000],
        [vec![b'z'; 8999], vec![b'y']].concat(),
    ];
    let (next, mut origin) = tokio::sync::mpsc::unbounded_channel::<()>();
    let echo = crate::support::Origin::scripted(move |mut stream, _| {
        let next = next.clone();
        async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            loop {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let _ = next.send(());
                let line = head.split(|byte| *byte == b'\n').find(|line| line.to_ascii_lowercase().starts_with(b"x-v:"));
                let value = line.map_or(&b"none"[..], |line| line[4..].trim_ascii());
                let answer = ok("cache-control: max-age=600\r\nvary: x-v\r\n", &digits(value));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let proxy = Proxy::before(echo.address);
    proxy.apply(ALL);
    for _ in 0..2 {
        for value in &values {
            let response = ask_bytes(&proxy, "/", &[b"x-v: ", &value[..], b"\r\n"].concat()).await;
            assert!(response.text() == digits(value), "{:?}", String::from_utf8_lossy(value));
        }
        assert_eq!(ask_bytes(&proxy, "/", b"").await.text(), digits(b"none"), "absent is not empty");
    }
    let mut asked = 0;
    while origin.try_recv().is_ok() {
        asked += 1;
    }
    // Those of more than 8 KiB are asked for each time.
    assert_eq!(asked, values.len() + 1 + 2);
}

#[tokio::test]
async fn vary_that_cannot_be_met_is_not_kept() {
    let many = (0..17).map(|number| format!("x-{number}")).collect::<Vec<_>>().join(", ");
    for (vary, reason) in [("*", "VaryStar"), ("x-a, *", "VaryStar"), (&*many, "Vary"), ("x a", "Vary"), ("x-a,x-\u{e9}", "Vary")]
    {
        let fields = format!("cache-control: max-age=600\r\nvary: {vary}\r\n");
        let site = Site::start(ALL, move |_, number| ok(&fields, &number.to_string())).await;
        for number in ["1", "2", "3"] {
            let response = site.get("/", "").await;
            assert_eq!(response.text(), number, "{vary}");
            assert!(response.field("cache-status").ends_with(&format!("detail={reason}")), "{vary}: {}", response.head);
        }
    }
}

#[tokio::test]
async fn answer_without_vary_takes_the_place_of_variants() {
    let site = Site::start(ALL, |head, number| match number {
        1 | 2 => ok("cache-control: max-age=600\r\nvary: x-v\r\n", field(head, "x-v").unwrap()),
        _ => kept("for all"),
    })
    .await;
    for (value, expected) in [("a", "a"), ("b", "b"), ("c", "for all"), ("a", "for all"), ("b", "for all")] {
        assert_eq!(site.get("/", &format!("x-v: {value}\r\n")).await.text(), expected);
    }
    assert_eq!(site.requests(), 3);
}
