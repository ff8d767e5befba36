//! What an administrator does with a count.

use redis::Value;
use tokio::time::Instant;

use super::{Failure, PATIENCE, Store};
use crate::limit::shared::rule::{Rule, name};

impl Store {
    /// Forgets a count and what is taken of it ahead, so that it begins anew; whether there was one. Requests that have slots of it show up
    /// again when they are renewed.
    ///
    /// # Errors
    /// Why that is not known.
    pub(crate) async fn forget(&self, key: &str, rule: &Rule) -> Result<bool, Failure> {
        let mut command = redis::cmd("DEL");
        command.arg(name(key, rule));
        if matches!(rule, Rule::Bucket(_)) {
            command.arg(format!("{key}:l"));
        }
        match self.0.ask(key, PATIENCE, Instant::now() + PATIENCE, command).await? {
            Value::Int(gone) => Ok(gone > 0),
            _ => Err(Failure::Error),
        }
    }
}
