//! `fetchr cache` and `fetchr limits` of pods, with a server that answers as the API server and the operator do.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};

use crate::support::{Said, command, run};

const SIDECARS: &str = "/apis/api.fetchr.sh/v1alpha1/namespaces/shop/sidecars";

/// What is answered to a request by its method, path with query, and body.
type Answers = dyn Fn(&str, &str, &str) -> (u16, Value) + Send + Sync;

/// A cluster, and what it was asked.
struct Cluster {
    folder: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Cluster {
    /// Pods `web-0` and `web-1` of `Deployment/web` run, `web-2` is connected only, and `shop-0` is another's. `answers` has the rest.
    fn start(answers: impl Fn(&str, &str, &str) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": server}}], "users": [{"name": "it", "user": {"token": "t0ken"}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it", "namespace": "shop"}}]});
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (answers, log): (Arc<Answers>, _) = (Arc::new(answers), Arc::clone(&asked));
        // Ends with the process of the test.
        thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let (answers, log) = (Arc::clone(&answers), Arc::clone(&log));
                thread::spawn(move || answer(&connection, &*answers, &log));
            }
        });
        Self { folder, asked }
    }

    fn run(&self, args: &[&str]) -> Said {
        self.run_of("cache", args)
    }

    fn run_of(&self, name: &str, args: &[&str]) -> Said {
        let mut command = command(&[&[name], args].concat());
        run(command.env("KUBECONFIG", self.folder.path().join("kubeconfig")))
    }

    fn of_workload(&self, args: &[&str]) -> Said {
        self.run(&[args, &["--workload", "deployment/web"]].concat())
    }

    /// Requests to sidecars since the last time, sorted.
    fn asked(&self) -> Vec<String> {
        let mut asked: Vec<String> = self.asked.lock().unwrap().drain(..).collect();
        asked.sort_unstable();
        asked
    }
}

fn answer(mut connection: &TcpStream, answers: &Answers, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(connection);
    let mut head = Vec::new();
    while head.last().is_none_or(|line: &String| !line.trim().is_empty()) {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        head.push(line);
    }
    let length =
        head.iter().filter_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok()).next();
    let mut body = vec![0; length.unwrap_or_default()];
    reader.read_exact(&mut body).unwrap();
    let words: Vec<&str> = head[0].split(' ').collect();
    let (method, target, body) = (words[0], words[1], String::from_utf8(body).unwrap());
    let (status, answer) = listed(target).map_or_else(|| answers(method, target, &body), |list| (200, list));
    if let Some(of) = target.strip_prefix(&format!("{SIDECARS}/")) {
        log.lock().unwrap().push(format!("{method} {of}"));
    }
    let answer = answer.to_string();
    let length = answer.len();
    let head =
        format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    // A client that has gone is no fault here.
    let _ = connection.write_all((head + &answer).as_bytes());
}

fn listed(target: &str) -> Option<Value> {
    let pod = |name: &str, workload: &str| {
        json!({"metadata": {"name": name, "namespace": "shop",
            "annotations": {"fetchr.sh/status": json!({"version": "0.1.0", "workload": workload}).to_string()}}})
    };
    let sidecar = |name: &str, workload: &str| {
        json!({"metadata": {"name": name, "namespace": "shop"},
            "status": {"workload": workload, "version": "0.1.0", "inSync": true, "ready": true}})
    };
    if target.starts_with("/api/v1/namespaces/shop/pods?") {
        assert!(target.contains("labelSelector=fetchr.sh%2Finjected%3Dtrue") && target.contains("status.phase"), "{target}");
        let items = [pod("web-1", "Deployment/web"), pod("web-0", "Deployment/web"), pod("shop-0", "StatefulSet/shop")];
        return Some(
            json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": items}),
        );
    }
    (target == SIDECARS).then(|| {
        let items =
            [sidecar("web-0", "Deployment/web"), sidecar("web-2", "Deployment/web"), sidecar("shop-0", "StatefulSet/shop")];
        json!({"apiVersion": "api.fetchr.sh/v1alpha1", "kind": "SidecarList", "metadata": {}, "items": items})
    })
}

fn refused(code: u16, message: &str, details: &Value) -> (u16, Value) {
    (
        code,
        json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure", "message": message, "code": code,
        "reason": "X", "details": details}),
    )
}

/// As the operator says it.
fn said(code: u16, pod: &str, why: &str) -> (u16, Value) {
    let details = json!({"name": pod, "group": "api.fetchr.sh", "kind": "sidecars", "causes": [{"message": why}]});
    refused(code, &format!("the sidecar of {pod} says: {why}"), &details)
}

fn not_connected(pod: &str) -> (u16, Value) {
    let details = json!({"name": pod, "group": "api.fetchr.sh", "kind": "sidecars", "causes": []});
    refused(404, &format!("sidecars.api.fetchr.sh {pod:?} not found"), &details)
}

fn pod_of(target: &str) -> &str {
    target.strip_prefix(SIDECARS).and_then(|rest| rest.trim_start_matches('/').split('/').next()).unwrap_or_default()
}

fn stored(url: &str, hits: u32) -> Value {
    json!({"url": url, "rule": "shop/web/all", "status": 200, "state": "Fresh", "ageSeconds": 1, "freshSeconds": 59, "bodyBytes": 5,
        "bytes": 300, "hits": hits})
}

#[test]
fn figures_of_pods_are_summed_up_and_who_gives_none_is_named() {
    let cluster = Cluster::start(|_, target, _| match pod_of(target) {
        "web-1" => not_connected("web-1"),
        _ => {
            let fills = json!({"open": 0, "bytes": 0, "led": 0, "joined": 0, "notStorable": 0, "crowded": 0, "failed": 0});
            let rules = json!([{"rule": "shop/web/all", "total": 4, "requests": {"hit": 3, "miss": 1}, "hitRatio": 0.75}]);
            (
                200,
                json!({"objects": 2, "bytes": 600, "limitBytes": 6000, "fills": fills, "evictions": {}, "refused": {},
                "rules": rules, "bypassed": {}, "notStored": {}, "servedBytes": 15, "purges": {}}),
            )
        }
    });
    let said = cluster.of_workload(&["stats"]);
    assert_eq!(cluster.asked(), ["GET web-0/cache/stats", "GET web-1/cache/stats", "GET web-2/cache/stats"]);
    assert!(said.code == 1 && said.stdout.starts_with("pods          2\nstored        4 answers, 1.1Ki of 11.7Ki"), "{said:?}");
    let expected =
        "error: 1 of 3 pods gave no answer\n  sidecar of shop/web-1: no sidecar of this pod is connected to the operator\n";
    assert_eq!(said.stderr, expected);
    let json = cluster.of_workload(&["stats", "-o", "json"]).json();
    assert_eq!((&json["total"]["rules"][0]["hitRatio"], &json["pods"][1]["pod"]), (&json!(0.75), &json!("web-2")));
    assert_eq!((&json["failed"][0]["namespace"], &json["failed"][0]["pod"]), (&json!("shop"), &json!("web-1")));
    let one = cluster.run(&["stats", "--pod", "web-0", "-o", "json"]);
    assert_eq!((one.code, &one.json()["objects"]), (0, &json!(2)), "{one:?}");
    let none = cluster.run(&["stats", "--pod", "web-1"]);
    assert!(none.code == 1 && none.stderr.contains("no sidecar of this pod is connected"), "{none:?}");
}

#[test]
fn lists_of_pods_are_one_table() {
    let cluster = Cluster::start(|_, target, _| match pod_of(target) {
        "web-0" if !target.contains("after=") && !target.contains("order=") => {
            (200, json!({"objects": [stored("/b", 1)], "next": 7}))
        }
        "web-0" => (200, json!({"objects": [stored("/a", 5)]})),
        "web-1" => (200, json!({"objects": [stored("/a", 9), stored("/c", 0)]})),
        _ => (200, json!({"objects": []})),
    });
    let urls = |said: &Said| -> Vec<String> {
        let json = said.json();
        let objects = json["objects"].as_array().unwrap().iter();
        objects.map(|of| format!("{} {}", of["url"].as_str().unwrap(), of["pod"].as_str().unwrap())).collect()
    };
    let all = cluster.of_workload(&["ls", "-o", "json", "--prefix", "http://a/"]);
    assert_eq!(
        (all.code, urls(&all)),
        (0, ["/a web-0", "/a web-1", "/b web-0", "/c web-1"].map(str::to_owned).to_vec()),
        "{all:?}"
    );
    assert!(cluster.asked().contains(&"GET web-0/cache/objects?prefix=http%3A%2F%2Fa%2F&limit=99&after=7".to_owned()));
    let some = cluster.of_workload(&["ls", "-o", "json", "--limit", "2"]);
    assert_eq!((urls(&some).len(), &some.json()["more"]), (2, &json!(true)), "{some:?}");
    let table = cluster.of_workload(&["top", "--limit", "1"]);
    let lines: Vec<&str> = table.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("POD     URL ") && lines[1].starts_with("web-1   /a "), "{table:?}");
}

#[test]
fn explanations_and_answers_of_pods_are_compared() {
    let cluster = Cluster::start(|_, target, _| match (pod_of(target), target.contains("/cache/object?")) {
        ("web-1", true) => said(404, "web-1", "nothing is stored for it"),
        (_, true) => (200, json!({"stored": stored("http://a/b", 1), "headers": [{"name": "etag", "value": "\"1\""}]})),
        (pod, false) => {
            let outcome = if pod == "web-1" { ("Miss", "nothing is stored") } else { ("Hit", "Fresh") };
            (200, json!({"direction": "Inbound", "method": "GET", "url": "http://a/b", "outcome": outcome.0, "why": outcome.1}))
        }
    });
    let explained = cluster.of_workload(&["explain", "http://a/b"]);
    let expected = "GET http://a/b\n\nOUTCOME   WHY                 RULE   PODS\n\
        Hit       Fresh               -      web-0, web-2\nMiss      nothing is stored   -      web-1\n";
    assert_eq!((explained.code, explained.stdout.as_str()), (0, expected), "{explained:?}");
    let got = cluster.of_workload(&["get", "http://a/b"]);
    assert!(got.code == 0 && got.stdout.contains("\nweb-0, web-2\netag: \"1\"\n\nPOD     NOTHING\nweb-1   nothing"), "{got:?}");
    let nothing = cluster.run(&["get", "http://a/b", "--pod", "web-1"]);
    assert_eq!((nothing.code, nothing.stdout.as_str()), (1, ""));
    let hint =
        "error: nothing is stored for it\n  http://a/b\n  what the cache would do: fetchr cache explain http://a/b --pod web-1\n";
    assert_eq!(nothing.stderr, hint);
    let body = cluster.of_workload(&["get", "http://a/b", "--body"]);
    assert!(body.code == 2 && body.stderr.contains("bodies do not travel through the operator"), "{body:?}");
}

#[test]
fn purge_asks_one_pod_where_they_share_their_purges_and_else_each() {
    let purged = |shared: bool, who: &[&str], pending: &[&str]| {
        let acknowledged: Vec<_> = who.iter().map(|pod| json!({"member": pod, "lagMicros": 5})).collect();
        (
            200,
            json!({"shared": shared, "complete": pending.is_empty(), "acknowledged": acknowledged, "leaseRanOut": [], "pending": pending,
            "replicas": 0, "tookMicros": 9}),
        )
    };
    let shared = Cluster::start(move |_, _, body| {
        assert_eq!(serde_json::from_str::<Value>(body).unwrap()["tag"], "news");
        purged(true, &["web-0", "web-1", "web-2"], &[])
    });
    let said = shared.of_workload(&["purge", "--tag", "news"]);
    assert_eq!(shared.asked(), ["POST web-0/purge"]);
    assert!(
        said.code == 0 && said.stdout.starts_with("purged: 3 of 3 pods\n\nPOD     OUTCOME   LAG\nweb-0   purged    5 us\n"),
        "{said:?}"
    );

    let alone = Cluster::start(move |_, target, _| match pod_of(target) {
        "web-1" => not_connected("web-1"),
        pod => purged(false, &[pod], &[]),
    });
    let said = alone.of_workload(&["purge", "--all", "-o", "json"]);
    assert_eq!(alone.asked(), ["POST web-0/purge", "POST web-1/purge", "POST web-2/purge"]);
    assert_eq!((said.code, &said.json()["complete"], &said.json()["pods"][1]["outcome"]), (1, &json!(false), &json!("Failed")));
    let expected = "error: the purge is not complete\n  sidecar of shop/web-1: no sidecar of this pod";
    assert!(said.stderr.starts_with(expected), "{said:?}");

    let late = Cluster::start(move |_, _, _| purged(true, &["web-0", "web-1"], &["web-2"]));
    let said = late.of_workload(&["purge", "--all"]);
    assert_eq!(late.asked(), ["POST web-0/purge"]);
    assert!(said.code == 1 && said.stdout.starts_with("not complete: 2 of 3 pods\n"), "{said:?}");
    assert!(said.stderr.contains("shop/web-2 has not read it"), "{said:?}");
    let one = late.run(&["purge", "--all", "--pod", "web-0"]);
    assert!(one.code == 1 && one.stdout.starts_with("not complete: 2 acknowledged, 0 cut off, 1 pending, "), "{one:?}");
}

#[test]
fn what_is_wrong_is_said_once_with_what_would_be_right() {
    let forbidden = Cluster::start(|_, target, _| {
        let details = json!({"name": pod_of(target), "group": "api.fetchr.sh", "kind": "sidecars"});
        refused(403, "User \"bob\" cannot get resource \"sidecars/cache\"", &details)
    });
    let said = forbidden.of_workload(&["stats"]);
    assert_eq!((said.code, said.stdout.as_str()), (1, ""));
    let expected = "error: sidecar of shop/web-0: User \"bob\" cannot get resource \"sidecars/cache\"\n  and so 2 other pods, or alike\n  \
        ask for the right to get sidecars/cache in the API group api.fetchr.sh: the ClusterRole fetchr-edit has it\n";
    assert_eq!(said.stderr, expected);
    let wrong = Cluster::start(|_, target, _| self::said(400, pod_of(target), "tag: contains a space"));
    let said = wrong.of_workload(&["purge", "--tag", "a b"]);
    assert_eq!((said.code, said.stderr.as_str(), wrong.asked().len()), (2, "error: tag: contains a space\n", 1));
    let away = Cluster::start(|_, _, _| refused(503, "service unavailable", &json!({})));
    let said = away.run(&["explain", "/a", "--pod", "web-0"]);
    assert!(said.code == 4 && said.stderr.contains("the operator can't be asked: service unavailable"), "{said:?}");
    for (args, words) in [
        (&["stats", "-n", "shop"][..], "give --pod NAME or --workload KIND/NAME"),
        (&["purge", "--all", "-A"], "no pod of it is named"),
        (&["ls", "--pod", "web-0", "-A"], "-A is for --workload"),
        (&["ls", "--pod", "web-0", "--workload", "Deployment/web"], "cannot be used with"),
        (&["ls", "--workload", "web"], "such as Deployment/web"),
    ] {
        let said = away.run(args);
        assert_eq!((said.code, said.stderr.contains(words)), (2, true), "{args:?}: {said:?}");
    }
    let none = away.run(&["stats", "--workload", "deployment/other"]);
    assert!(none.code == 1 && none.stderr.contains("no pod of deployment/other in namespace shop has a sidecar"), "{none:?}");
    for kind in ["Deployment", "deploy", "deployments"] {
        away.asked();
        away.run(&["stats", "--workload", &format!("{kind}/web")]);
        assert_eq!(away.asked().len(), 3, "{kind}");
    }
}

#[test]
fn limits_of_pods_are_added_and_counts_are_reset_in_each() {
    const LIMIT: &str = "shop/api/all/rate";
    let count = json!({"name": LIMIT, "counted": "Pod", "quota": 5, "remaining": 2, "nextSeconds": 0.5, "fullSeconds": 3.0});
    let cluster = Cluster::start(move |method, target, body| match (method, target.strip_prefix(SIDECARS)) {
        ("GET", Some(of)) if of.contains("/limits/count?") => (200, count.clone()),
        ("GET", Some(of)) if of.contains("/limits/top?") => {
            let key = json!({"name": LIMIT, "values": ["anna"], "denied": 4, "uncertain": 0, "quota": 5, "remaining": 2});
            (200, json!({"keys": [key]}))
        }
        ("GET", Some("/web-1/limits")) => not_connected("web-1"),
        ("GET", Some(of)) if of.ends_with("/limits") => {
            let limit = json!({"name": LIMIT, "direction": "Inbound", "mode": "Enforce", "limit": {"requests": 5, "per": "1s"}, "overrides": 0,
                "scope": "Pod", "accuracy": "Exact", "decisions": [{"source": "Pod", "allowed": 10, "denied": 1}]});
            (200, json!({"counts": 1, "capacity": 100, "limits": [limit]}))
        }
        ("POST", Some(of)) if of.ends_with("/reset") => {
            let named: Value = serde_json::from_str(body).unwrap();
            assert_eq!(named, json!({"limit": LIMIT, "values": ["anna"]}));
            (200, json!({"found": pod_of(target) == "web-2"}))
        }
        _ => refused(403, "User \"bob\" cannot do that", &json!({"kind": "sidecars", "causes": []})),
    });
    let run = |args: &[&str]| cluster.run_of("limits", args);
    let workload = ["--workload", "deployment/web"];
    let list = run(&[&["ls", "-o", "json"], &workload[..]].concat());
    assert_eq!((list.code, list.stderr.contains("1 of 3 pods gave no answer")), (1, true), "{list:?}");
    assert_eq!(list.json()["limits"][0]["decisions"][0]["allowed"], 20);
    let top = run(&[&["top", "-o", "json"], &workload[..]].concat());
    assert_eq!((top.code, &top.json()["keys"][0]["denied"]), (0, &json!(12)), "{top:?}");
    let counts = run(&[&["get", LIMIT, "anna"], &workload[..]].concat());
    assert_eq!((counts.code, counts.stdout.lines().count()), (0, 4), "{counts:?}");
    cluster.asked();
    let one = run(&["get", LIMIT, "anna b", "--pod", "web-0", "-o", "json"]);
    assert_eq!((one.code, &one.json()["remaining"]), (0, &json!(2)), "{one:?}");
    assert_eq!(cluster.asked(), ["GET web-0/limits/count?limit=shop%2Fapi%2Fall%2Frate&value=anna%20b"]);
    let reset = run(&[&["reset", LIMIT, "anna"], &workload[..]].concat());
    assert_eq!((reset.code, reset.stdout.as_str()), (0, "forgotten: shop/api/all/rate \"anna\"\n"), "{reset:?}");
    assert_eq!(cluster.asked(), ["POST web-0/reset", "POST web-1/reset", "POST web-2/reset"]);
}

#[test]
fn right_that_lacks_for_limits_is_named() {
    let details = json!({"group": "api.fetchr.sh", "kind": "sidecars", "causes": []});
    let cluster = Cluster::start(move |_, _, _| refused(403, "User \"bob\" cannot do that", &details));
    for (args, right) in [
        (&["ls", "--pod", "web-0"][..], "get sidecars/limits"),
        (&["reset", "shop/api/all/rate", "--pod", "web-0"], "create sidecars/reset"),
    ] {
        let said = cluster.run_of("limits", args);
        let hint = format!("ask for the right to {right} in the API group api.fetchr.sh: the ClusterRole fetchr-edit has it");
        assert_eq!((said.code, said.stderr.contains(&hint)), (1, true), "{said:?}");
    }
}
