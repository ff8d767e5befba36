//! Carries a change of the typed pod over to the pod as the API server sent it.
//!
//! A newer API server sends fields that our types don't know. They must survive, and stay with the container they belong to
//! when ours are put before it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// `raw` with all that changed from `before` to `after`. Lists whose elements have unique names are matched by name.
pub fn graft(raw: &Value, before: &Value, after: &Value) -> Value {
    match (raw, before, after) {
        _ if before == after => raw.clone(),
        (Value::Object(raw), Value::Object(before), Value::Object(after)) => Value::Object(graft_object(raw, before, after)),
        (Value::Array(raw), Value::Array(before), Value::Array(after))
            if [raw, before, after].map(|list| are_named(list)) == [true; 3] =>
        {
            Value::Array(after.iter().map(|after| graft_named(raw, before, after)).collect())
        }
        _ => after.clone(),
    }
}

fn graft_object(raw: &Map<String, Value>, before: &Map<String, Value>, after: &Map<String, Value>) -> Map<String, Value> {
    let mut grafted = raw.clone();
    grafted.retain(|key, _| after.contains_key(key) || !before.contains_key(key));
    for (key, after) in after {
        let value = match (raw.get(key), before.get(key)) {
            (Some(raw), Some(before)) => graft(raw, before, after),
            _ => after.clone(),
        };
        grafted.insert(key.clone(), value);
    }
    grafted
}

fn graft_named(raw: &[Value], before: &[Value], after: &Value) -> Value {
    let same = |list: &[Value]| list.iter().find(|element| element["name"] == after["name"]).cloned();
    match (same(raw), same(before)) {
        (Some(raw), Some(before)) => graft(&raw, &before, after),
        _ => after.clone(),
    }
}

fn are_named(list: &[Value]) -> bool {
    let names: BTreeSet<&str> = list.iter().filter_map(|element| element.get("name")?.as_str()).collect();
    names.len() == list.len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_stay_with_their_container() {
        let raw = json!({"spec": {"novel": 1, "containers": [{"name": "app", "image": "a", "novel": {"x": 1}}]}, "novel": [1]});
        let before = json!({"spec": {"containers": [{"name": "app", "image": "a"}]}});
        let after = json!({"spec": {"containers": [{"name": "ours"}, {"name": "app", "image": "b"}]}});
        let expected = json!({"spec": {"novel": 1, "containers": [{"name": "ours"}, {"name": "app", "image": "b", "novel": {"x": 1}}]},
            "novel": [1]});
        assert_eq!(graft(&raw, &before, &after), expected);
    }

    #[test]
    fn what_was_removed_is_removed_and_what_was_not_known_is_not() {
        let raw = json!({"a": 1, "b": {"c": 1, "novel": 2}, "tcpSocket": {"port": 1}});
        let before = json!({"a": 1, "b": {"c": 1}, "tcpSocket": {"port": 1}});
        let after = json!({"b": {"c": 2}, "httpGet": {"port": 2}});
        assert_eq!(graft(&raw, &before, &after), json!({"b": {"c": 2, "novel": 2}, "httpGet": {"port": 2}}));
    }

    #[test]
    fn lists_without_names_are_replaced() {
        let (raw, before, after) = (json!([1, 2]), json!([1, 2]), json!([2]));
        assert_eq!(graft(&raw, &before, &after), json!([2]));
    }
}
