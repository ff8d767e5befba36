use std::fs;

use tokio::time::timeout;

use super::*;

const PROXY: &str = "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {name: web}\nspec:\n  interception:\n    mode: Explicit\n    \
                     listeners: [{name: web, port: 8080, upstream: \"http://127.0.0.1:9000\"}]\n";

fn policy(value: &str) -> String {
    format!(
        "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrPolicy\nmetadata: {{name: p}}\nspec:\n  targetRefs: [{{kind: FetchrProxy, name: web}}]\n  \
         rules:\n  - name: r\n    headers: {{request: {{set: [{{name: x-a, value: \"{value}\"}}]}}}}\n"
    )
}

struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let folder = Self { dir: tempfile::tempdir().unwrap() };
        folder.write("proxy.yaml", PROXY);
        folder.write("policy.yaml", &policy("1"));
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn files(&self) -> Files {
        Files { paths: vec![self.dir.path().to_owned()], ..Files::default() }
    }
}

fn no_env(_: &str) -> Option<String> {
    None
}

/// The value that the policy in force sets; nothing without one.
fn value(config: &Config) -> String {
    let plan = &config.planned.as_ref().unwrap().plan;
    // A file that is written in place is empty for a moment, which on a busy machine may be a long one.
    let Some(policy) = plan.policies.first() else { return String::new() };
    policy.rules[0].headers.as_ref().unwrap().request.as_ref().unwrap().set[0].value.clone()
}

struct Watching {
    shared: Shared,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Watching {
    fn start(files: Files) -> Self {
        let shared = Shared::new(load(&files, &no_env).unwrap());
        let stop = CancellationToken::new();
        let task = tokio::spawn(watch(files, shared.clone(), Metrics::default(), stop.clone()));
        Self { shared, stop, task }
    }

    /// Waits until the policy in force sets this value; makes the change anew until the watch is surely set up.
    async fn until(&self, wanted: &str, change: impl Fn()) {
        let mut changes = self.shared.subscribe();
        for _ in 0..100 {
            change();
            let _ = timeout(Duration::from_millis(400), changes.changed()).await;
            if value(&self.shared.load()) == wanted {
                return;
            }
        }
        panic!("{wanted} never came into force");
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(5), self.task).await.unwrap().unwrap();
    }
}

#[test]
fn folder_of_documents_becomes_a_configuration() {
    let folder = Folder::new();
    let config = load(&folder.files(), &no_env).unwrap();
    assert_eq!((config.source(), config.inbound.rules(), value(&config).as_str()), (PlanSource::File, 1, "1"));
    assert_eq!(config.settings().interception.listeners[0].port, 8080);
}

#[test]
fn proxy_to_run_has_to_be_clear() {
    let folder = Folder::new();
    folder.write("other.yaml", &PROXY.replace("name: web}", "name: api}"));
    let unclear = load(&folder.files(), &no_env).unwrap_err();
    assert!(matches!(&unclear, FileError::SeveralProxies(found) if found.len() == 2), "{unclear}");
    let chosen = Files { proxy: Some(ObjectRef::new("default", "api")), ..folder.files() };
    assert_eq!(load(&chosen, &no_env).unwrap().planned.unwrap().plan.proxy.name, "api");
    let missing = Files { proxy: Some(ObjectRef::new("default", "none")), ..folder.files() };
    assert!(load(&missing, &no_env).unwrap_err().to_string().contains("no FetchrProxy default/none"));
}

#[test]
fn wrong_document_is_told_with_its_place() {
    let folder = Folder::new();
    folder.write("policy.yaml", &policy("1").replace("name: r\n", "name: R!\n"));
    let told = load(&folder.files(), &no_env).unwrap_err().to_string();
    assert!(told.contains("policy.yaml:7:") && told.contains("spec.rules[0].name: "), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_file_comes_into_force_and_a_bad_one_does_not() {
    let folder = Folder::new();
    let watching = Watching::start(folder.files());
    watching.until("2", || folder.write("policy.yaml", &policy("2"))).await;
    folder.write(".bad", "kind: [");
    fs::rename(folder.path(".bad"), folder.path("policy.yaml")).unwrap();
    watching.until("2", || {}).await;
    assert!(load(&folder.files(), &no_env).is_err());
    watching.until("3", || folder.write("policy.yaml", &policy("3"))).await;
    watching.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn editor_that_renames_is_followed_also_for_a_single_file() {
    let folder = Folder::new();
    let paths = vec![folder.path("proxy.yaml"), folder.path("policy.yaml")];
    let watching = Watching::start(Files { paths, ..Files::default() });
    for wanted in ["2", "3"] {
        watching
            .until(wanted, || {
                folder.write(".policy.swp", &policy(wanted));
                fs::rename(folder.path(".policy.swp"), folder.path("policy.yaml")).unwrap();
            })
            .await;
    }
    watching.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_link_of_a_mounted_config_map_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let fill = |version: &str| {
        let data = dir.path().join(format!("..{version}"));
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("all.yaml"), format!("{PROXY}---\n{}", policy(version))).unwrap();
        let _ = fs::remove_file(dir.path().join("..data_tmp"));
        std::os::unix::fs::symlink(format!("..{version}"), dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    fill("1");
    std::os::unix::fs::symlink("..data/all.yaml", dir.path().join("all.yaml")).unwrap();
    for paths in [vec![dir.path().to_owned()], vec![dir.path().join("all.yaml")]] {
        fill("1");
        let watching = Watching::start(Files { paths, ..Files::default() });
        assert_eq!(value(&watching.shared.load()), "1");
        watching.until("2", || fill("2")).await;
        watching.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_folder_is_followed() {
    let outer = tempfile::tempdir().unwrap();
    let fill = |version: &str| {
        let fresh = outer.path().join("fresh");
        fs::create_dir_all(&fresh).unwrap();
        fs::write(fresh.join("all.yaml"), format!("{PROXY}---\n{}", policy(version))).unwrap();
        let _ = fs::remove_dir_all(outer.path().join("conf"));
        fs::rename(fresh, outer.path().join("conf")).unwrap();
    };
    fill("1");
    let watching = Watching::start(Files { paths: vec![outer.path().join("conf")], ..Files::default() });
    watching.until("2", || fill("2")).await;
    watching.until("3", || fill("3")).await;
    watching.end().await;
}
