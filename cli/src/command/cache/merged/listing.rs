//! What several pods have stored, in one table.

use std::cmp::Reverse;

use serde::Serialize;
use sidecar::show::Stored;

use super::Names;
use crate::{
    command::cache::{
        ls::{Listing, cells, header},
        pods::{Failed, Of, PodName},
    },
    output::Table,
};

/// What comes first.
#[derive(Clone, Copy, Debug)]
pub(in crate::command::cache) enum Order {
    /// By the alphabet, so that one URL in several pods stands together.
    Url,
    /// What was asked for most often.
    Hits,
    /// What takes most memory.
    Bytes,
}

/// The first lines of all that pods have listed so far.
#[derive(Debug)]
pub(in crate::command::cache) struct Lines {
    order: Order,
    limit: usize,
    objects: Vec<Of<Stored>>,
    more: bool,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
pub(in crate::command::cache) struct Listed<'a> {
    objects: Vec<Of<Stored>>,
    /// Whether there may be others.
    pub(in crate::command::cache) more: bool,
    failed: &'a [Failed],
}

impl Lines {
    /// No pod has answered yet.
    pub(in crate::command::cache) fn new(order: Order, limit: usize) -> Self {
        Self { order, limit, objects: Vec::new(), more: false }
    }

    /// Adds those of a pod. Never more are kept than are shown.
    pub(in crate::command::cache) fn add(&mut self, pod: &PodName, Listing { objects, more }: Listing) {
        self.objects.extend(objects.into_iter().map(|what| Of { pod: pod.clone(), what }));
        let name = |of: &Of<Stored>| (of.what.url.clone(), of.pod.clone());
        match self.order {
            Order::Url => self.objects.sort_by(|a, b| (&a.what.url, &a.pod).cmp(&(&b.what.url, &b.pod))),
            Order::Hits => self.objects.sort_by_cached_key(|of| (Reverse(of.what.hits), name(of))),
            Order::Bytes => self.objects.sort_by_cached_key(|of| (Reverse(of.what.bytes), name(of))),
        }
        self.more |= more || self.objects.len() > self.limit;
        self.objects.truncate(self.limit);
    }

    /// All that have answered were added.
    pub(in crate::command::cache) fn done(self, failed: &[Failed]) -> Listed<'_> {
        Listed { objects: self.objects, more: self.more, failed }
    }
}

impl Listed<'_> {
    /// A line for each, with its pod.
    pub(in crate::command::cache) fn table(&self, wide: bool) -> Table {
        table(&self.objects, wide)
    }
}

/// A line for each, with its pod.
pub(super) fn table(objects: &[Of<Stored>], wide: bool) -> Table {
    let names = Names::of(objects.iter().map(|of| &of.pod));
    let mut table = Table::new(&[&["POD"], &header(wide)[..]].concat());
    for Of { pod, what } in objects {
        table.row([vec![names.name(pod)], cells(what, wide)].concat());
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(url: &str, hits: u32, bytes: u64) -> Stored {
        let fields = json!({"url": url, "rule": "shop/web/all", "status": 200, "state": "Fresh", "ageSeconds": 1, "freshSeconds": 59,
            "bodyBytes": 5, "bytes": bytes, "hits": hits});
        serde_json::from_value(fields).unwrap()
    }

    fn pod(namespace: &str, pod: &str) -> PodName {
        PodName { namespace: namespace.to_owned(), pod: pod.to_owned() }
    }

    /// Two pods that have answered, the later one first.
    fn lines(order: Order, limit: usize) -> Vec<(String, String)> {
        let mut lines = Lines::new(order, limit);
        lines.add(&pod("shop", "web-1"), Listing { objects: vec![stored("/a", 9, 1), stored("/c", 1, 7)], more: false });
        lines.add(&pod("shop", "web-0"), Listing { objects: vec![stored("/b", 3, 5), stored("/a", 3, 5)], more: false });
        lines.done(&[]).objects.into_iter().map(|of| (of.what.url, of.pod.pod)).collect()
    }

    #[test]
    fn lines_of_all_pods_have_one_order() {
        let named = |lines: Vec<(String, String)>| lines.iter().map(|(url, pod)| format!("{url} {pod}")).collect::<Vec<_>>();
        assert_eq!(named(lines(Order::Url, 9)), ["/a web-0", "/a web-1", "/b web-0", "/c web-1"]);
        assert_eq!(named(lines(Order::Hits, 3)), ["/a web-1", "/a web-0", "/b web-0"]);
        assert_eq!(named(lines(Order::Bytes, 2)), ["/c web-1", "/a web-0"]);
    }

    #[test]
    fn what_was_cut_off_is_said() {
        for (limit, more, said) in [(2, false, false), (2, true, true), (1, false, true)] {
            let mut lines = Lines::new(Order::Url, limit);
            lines.add(&pod("shop", "web-0"), Listing { objects: vec![stored("/a", 0, 1), stored("/b", 0, 1)], more });
            assert_eq!(lines.done(&[]).more, said, "{limit} {more}");
        }
    }

    #[test]
    fn pods_of_several_namespaces_are_named_with_theirs() {
        let of = |namespace: &str| Of { pod: pod(namespace, "web-0"), what: stored("/a", 0, 1) };
        assert!(table(&[of("shop"), of("bank")], false).to_string().contains("\nbank/web-0 "));
        assert!(table(&[of("shop"), of("shop")], false).to_string().contains("\nweb-0 "));
    }
}
