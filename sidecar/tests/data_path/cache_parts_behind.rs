//! Parts, and answers that are not kept, that take the place of older wholes, which lie on disk and in Redis, too.

use crds::proxy::FetchrProxySpec;
use serde_json::{Value, json};

use crate::{
    cache_parts::{Film, Site},
    redis_server::Server,
    support::until,
};

const RULES: &str = r#"[{"name": "all", "cache": {"refresh": "'x-refresh' in request.headers"}}]"#;
const REFRESH: &str = "x-refresh: 1\r\n";

/// What lies behind the memory of a pod.
#[derive(Clone)]
struct Behind {
    redis: Option<Value>,
    disk: Option<Value>,
}

impl Behind {
    fn redis(server: &Server) -> Self {
        Self { redis: Some(json!({"endpoints": [server.address()], "commandTimeout": "5s"})), disk: None }
    }

    #[cfg(feature = "disk-cache")]
    fn disk(folder: &std::path::Path) -> Self {
        Self { redis: None, disk: Some(json!({"size": "16Mi", "path": folder})) }
    }

    /// A pod with nothing in memory.
    async fn pod(&self, film: Film) -> Site {
        let Self { redis, disk } = self.clone();
        let site = Site::in_pod(RULES, film, |spec: &mut FetchrProxySpec| {
            spec.cache.shared = redis.is_some().then(|| serde_json::from_value(json!({})).unwrap());
            spec.redis = redis.map(|redis| serde_json::from_value(redis).unwrap());
            spec.cache.disk = disk.map(|disk| serde_json::from_value(disk).unwrap());
        })
        .await;
        let there = if self.redis.is_some() { "fetchr_cache_shared_connected " } else { "fetchr_cache_disk_open " };
        // Until it is known what was purged, nothing is shared.
        until("it is there", async || site.proxy.metric(there) == 1.0 && site.proxy.metric("fetchr_cache_cut_off ") == 0.0).await;
        site
    }

    async fn is_written(&self, site: &Site) {
        let tier = if self.redis.is_some() { "shared" } else { "disk" };
        let stored = format!("fetchr_cache_{tier}_writes_total{{result=\"stored\"}}");
        until("it is written", async || site.proxy.metric(&stored) >= 1.0).await;
    }
}

/// A whole that memory has does not come back after a part of a newer one, nor does one that memory never had.
async fn newer_wins(behind: &Behind) {
    let newer = Film { version: 2, ..Film::new() };
    let mut site = behind.pod(Film::new()).await;
    site.get("", "").await;
    behind.is_written(&site).await;
    site.change(|film| *film = newer.clone());
    site.get("0-99", REFRESH).await;
    assert_eq!(site.parts("replaced"), 1.0);
    site.get("", "").await;
    site.get("", "").await;
    assert_eq!(site.requests(), 3, "the newer whole is kept");

    let newest = Film { version: 3, ..Film::new() };
    site.proxy.settings.cache.disk = None;
    site.proxy.apply(RULES);
    until("it is closed", async || site.proxy.metric("fetchr_cache_disk_limit_bytes ") == 0.0).await;
    let site = behind.pod(newest).await;
    site.get("0-99", REFRESH).await;
    assert_eq!(site.parts("first"), 1.0);
    site.get("", "").await;
    assert_eq!(site.requests(), 2);
}

async fn keys(server: &Server) -> Vec<String> {
    redis::from_redis_value(server.run(&["KEYS", "fetchr:shop:cache:*}"]).await).unwrap()
}

#[tokio::test]
async fn whole_in_redis_does_not_come_back_after_a_part_of_a_newer_one() {
    let server = Server::start(&[]).await;
    newer_wins(&Behind::redis(&server)).await;
}

#[tokio::test]
async fn whole_in_redis_is_taken_out_when_a_part_of_a_newer_one_comes() {
    let server = Server::start(&[]).await;
    let behind = Behind::redis(&server);
    let site = behind.pod(Film::new()).await;
    site.get("", "").await;
    behind.is_written(&site).await;
    site.get("100-199", "").await;
    assert_eq!(keys(&server).await.len(), 1);
    site.change(|film| film.version = 2);
    site.get("0-99", REFRESH).await;
    until("it is gone", async || keys(&server).await.is_empty()).await;
}

#[tokio::test]
async fn whole_in_redis_is_taken_out_when_the_origin_has_another_one_that_is_not_kept() {
    let server = Server::start(&[]).await;
    let behind = Behind::redis(&server);
    let site = behind.pod(Film { fields: "cache-control: max-age=0\r\n".to_owned(), ..Film::new() }).await;
    site.get("", "").await;
    behind.is_written(&site).await;
    assert_eq!(keys(&server).await.len(), 1);
    site.change(|film| *film = Film { version: 2, fields: "cache-control: private\r\n".to_owned(), ..Film::new() });
    site.get("", "").await;
    until("it is gone", async || keys(&server).await.is_empty()).await;
}

#[cfg(feature = "disk-cache")]
#[tokio::test]
async fn whole_on_disk_does_not_come_back_after_a_part_of_a_newer_one() {
    let folder = tempfile::tempdir().unwrap();
    newer_wins(&Behind::disk(folder.path())).await;
}
