//! What an administrator sees of counts that pods share, and does with them.

use super::{Ask, Decision, Failure, Rule, Sharing, Treatment, Verdict};

impl Sharing {
    /// How a count stands, by which rule.
    ///
    /// # Errors
    /// Why nobody knows.
    pub(in crate::limit) async fn look(&self, ask: &Ask<'_>) -> Result<(Rule, Verdict), Failure> {
        match self.look_once(ask).await {
            // The server's time is known by now.
            Err(Failure::Window) => self.look_once(ask).await,
            answered => answered,
        }
    }

    async fn look_once(&self, ask: &Ask<'_>) -> Result<(Rule, Verdict), Failure> {
        let wanted = self.wanted(ask);
        let pass = self.pass(std::slice::from_ref(&wanted), Treatment::Enforce).await;
        match pass.decisions.first() {
            Some(Decision::Told(verdict)) => Ok((wanted.rule, *verdict)),
            Some(Decision::Failed(failure)) => Err(*failure),
            Some(Decision::Skipped) | None => Err(Failure::Error),
        }
    }

    /// Forgets a count; whether there was one.
    ///
    /// # Errors
    /// Why nobody knows.
    pub(in crate::limit) async fn forget(&self, ask: &Ask<'_>) -> Result<bool, Failure> {
        let open = self.open.as_ref().ok_or(Failure::Away)?;
        let wanted = self.wanted(ask);
        open.leases.forget(ask.key);
        open.store.forget(&wanted.name, &wanted.rule).await
    }
}
