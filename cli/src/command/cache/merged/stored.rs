//! One stored answer, as several pods have it.

use serde::Serialize;
use sidecar::show::{StoredHead, Value};

use super::{Names, listing::table};
use crate::{
    command::cache::{
        get::fields,
        pods::{Failed, Of, PodName},
    },
    output::{Paint, Table},
};

/// What is printed as JSON.
#[derive(Debug, Default, Serialize)]
pub(in crate::command::cache) struct Found<'a> {
    pods: Vec<Of<StoredHead>>,
    nothing: Vec<Of<Nothing>>,
    failed: &'a [Failed],
}

/// A pod that has none.
#[derive(Debug, Serialize)]
struct Nothing {
    why: String,
}

impl<'a> Found<'a> {
    /// Of all that have answered.
    pub(in crate::command::cache) fn of(answers: Vec<(PodName, Result<StoredHead, String>)>, failed: &'a [Failed]) -> Self {
        let mut found = Self { failed, ..Self::default() };
        for (pod, answer) in answers {
            match answer {
                Ok(what) => found.pods.push(Of { pod, what }),
                Err(why) => found.nothing.push(Of { pod, what: Nothing { why } }),
            }
        }
        found.pods.sort_by(|a, b| a.pod.cmp(&b.pod));
        found.nothing.sort_by(|a, b| a.pod.cmp(&b.pod));
        found
    }

    /// Whether a pod has it.
    pub(in crate::command::cache) fn is_somewhere(&self) -> bool {
        !self.pods.is_empty()
    }

    /// Who has it, its fields, once where pods have the same, and who has none.
    pub(in crate::command::cache) fn render(&self, wide: bool, paint: Paint) -> String {
        let names = Names::of(self.pods.iter().map(|of| &of.pod).chain(self.nothing.iter().map(|of| &of.pod)));
        let mut parts = Vec::new();
        if self.is_somewhere() {
            let lines: Vec<_> = self.pods.iter().map(|of| Of { pod: of.pod.clone(), what: of.what.stored.clone() }).collect();
            parts.push(table(&lines, wide).to_string());
        }
        for (headers, pods) in self.alike() {
            parts.push(format!("{}\n{}", paint.strong(names.list(pods)), fields(headers, paint)));
        }
        if !self.nothing.is_empty() {
            let mut table = Table::new(&["POD", "NOTHING"]);
            self.nothing.iter().for_each(|of| table.row(vec![names.name(&of.pod), of.what.why.clone()]));
            parts.push(table.to_string());
        }
        parts.join("\n")
    }

    /// Pods whose answers have the same fields.
    fn alike(&self) -> Vec<(&[Value], Vec<&PodName>)> {
        let mut alike: Vec<(&[Value], Vec<&PodName>)> = Vec::new();
        for Of { pod, what: StoredHead { headers, .. } } in &self.pods {
            match alike.iter_mut().find(|(known, _)| *known == &headers[..]) {
                Some((_, pods)) => pods.push(pod),
                None => alike.push((headers, vec![pod])),
            }
        }
        alike
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn head(etag: &str) -> Result<StoredHead, String> {
        let stored = json!({"url": "http://a/b", "rule": "shop/web/all", "status": 200, "state": "Fresh", "ageSeconds": 5,
            "freshSeconds": 55, "bodyBytes": 5, "bytes": 100, "hits": 2});
        let headers = json!([{"name": "content-type", "value": "text/plain"}, {"name": "etag", "value": etag}]);
        Ok(serde_json::from_value(json!({"stored": stored, "headers": headers})).unwrap())
    }

    fn pod(name: &str) -> PodName {
        PodName { namespace: "shop".to_owned(), pod: name.to_owned() }
    }

    #[test]
    fn fields_that_pods_agree_in_are_shown_once() {
        let nothing = Err("nothing is stored for it".to_owned());
        let answers =
            vec![(pod("web-2"), head("2")), (pod("web-1"), head("1")), (pod("web-0"), head("1")), (pod("web-3"), nothing)];
        insta::assert_snapshot!(Found::of(answers, &[]).render(false, Paint::off()), @r"
        POD     URL          VARIANT   RULE           STATUS   STATE   AGE   FRESH   BODY   HITS
        web-0   http://a/b   -         shop/web/all   200      Fresh   5s    55s     5      2
        web-1   http://a/b   -         shop/web/all   200      Fresh   5s    55s     5      2
        web-2   http://a/b   -         shop/web/all   200      Fresh   5s    55s     5      2

        web-0, web-1
        content-type: text/plain
        etag: 1

        web-2
        content-type: text/plain
        etag: 2

        POD     NOTHING
        web-3   nothing is stored for it
        ");
    }

    #[test]
    fn nowhere_is_no_table() {
        let found = Found::of(vec![(pod("web-0"), Err("nothing is stored for it".to_owned()))], &[]);
        assert!(!found.is_somewhere());
        assert_eq!(found.render(false, Paint::off()), "POD     NOTHING\nweb-0   nothing is stored for it\n");
        let json = json!(found);
        assert_eq!((&json["pods"], &json["nothing"][0]["pod"]), (&json!([]), &json!("web-0")));
    }
}
