//! The forms that a URL has in keys.

use crds::policy::Direction;

use crate::config::Config;

/// All forms that the keys of the rules in force have of a URL, which is without its scheme: its path as the origin gets it, and of its
/// query what counts. Itself first, and none twice.
pub(crate) fn forms(config: &Config, url: &str) -> Vec<String> {
    let at = url.find(['/', '?']).unwrap_or(url.len());
    let (host, target) = url.split_at(at);
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let mut forms = vec![url.to_owned()];
    for direction in [Direction::Inbound, Direction::Outbound] {
        let spelled = config.forwards_normalized(direction).then(|| config.spelling().normal(path));
        let path = spelled.as_deref().unwrap_or(path);
        for key in config.routes(direction).caches().map(|caching| &caching.key) {
            let query = key.counted(query).map(|query| format!("?{query}")).unwrap_or_default();
            let form = format!("{host}{path}{query}");
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
    }
    forms
}
