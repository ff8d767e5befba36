//! `retry.hedge`: a second try beside the first.

use std::sync::{Arc, Mutex, atomic::Ordering};

use tokio::{io::AsyncWriteExt, sync::Notify};
use tokio_util::sync::CancellationToken;

use super::{BUSY, Does, GET, OK, POST, before, events, origin};
use crate::support::{Origin, eventually, read_head};

#[tokio::test]
async fn slow_answer_is_overtaken_by_a_second_try() {
    let (origin, came) = origin(&[Does::Hang, Does::Say(OK)]).await;
    let proxy = before(&origin, r#""retry": {"hedge": {"after": "100ms"}}"#);
    assert_eq!(proxy.ask(GET).await.status, 200);
    assert_eq!(came.load(Ordering::SeqCst), 2);
    let count = |event| events(&proxy, "retry", event, "enforce");
    assert_eq!((count("hedged"), count("hedge_first")), (1.0, 1.0));
}

#[tokio::test]
async fn second_try_that_fails_does_not_spoil_the_first() {
    let release = Arc::new(Notify::new());
    let released = Arc::clone(&release);
    let origin = Origin::scripted(move |mut stream, number| {
        let released = Arc::clone(&released);
        async move {
            while read_head(&mut stream).await.is_some() {
                if number == 0 {
                    released.notified().await;
                    stream.write_all(OK.as_bytes()).await.unwrap();
                } else {
                    stream.write_all(BUSY.as_bytes()).await.unwrap();
                }
            }
        }
    })
    .await;
    let proxy = before(&origin, r#""retry": {"statuses": [], "hedge": {"after": "50ms"}}"#);
    let second = async {
        eventually("the second try's answer", || proxy.metric("http_client_request_duration_seconds_count") == 1.0).await;
        release.notify_one();
    };
    let (answer, ()) = tokio::join!(proxy.ask(GET), second);
    assert_eq!(answer.status, 200);
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn request_with_an_effect_is_never_sent_twice_at_once() {
    let (heads, free) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
    let (log, wait) = (Arc::clone(&heads), free.clone());
    let origin = Origin::scripted(move |mut stream, _| {
        let (log, wait) = (Arc::clone(&log), wait.clone());
        async move {
            while let Some(head) = read_head(&mut stream).await {
                log.lock().unwrap().push(head);
                wait.cancelled().await;
                stream.write_all(OK.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let proxy = before(&origin, r#""retry": {"methods": ["GET", "POST"], "hedge": {"after": "10ms"}}"#);
    let posts = || heads.lock().unwrap().iter().filter(|head| head.starts_with("POST ")).count();
    let others = async {
        eventually("the POST", || posts() == 1).await;
        // A GET that comes after it has its second try before it is answered: the POST's would have come by then.
        let second = async {
            eventually("the GET's second try", || events(&proxy, "retry", "hedged", "enforce") == 1.0).await;
            assert_eq!(posts(), 1);
            free.cancel();
        };
        tokio::join!(proxy.ask(GET), second).0
    };
    let (post, get) = tokio::join!(proxy.ask(POST), others);
    assert_eq!((post.status, get.status, posts()), (200, 200, 1));
}
