//! What is known of objects from earlier compilations: regular expressions and CEL are compiled to check a policy, which is dear, and
//! most objects stay as they are.

use std::{collections::HashMap, sync::Arc};

use kube::core::ObjectMeta;

use crate::{FetchrPolicy, FetchrProxy, policy::PolicyRule, problems::Problems};

/// What is known of objects, by UID and generation. An object without them, as on a laptop, is looked at each time.
#[derive(Debug, Default)]
pub struct Memory {
    known: HashMap<(String, i64), Known>,
    round: u64,
}

/// What is known of one object.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// All that is wrong with it.
    pub(super) problems: Arc<Problems>,
    /// A policy's rules, for all plans that carry them.
    pub(super) rules: Arc<[PolicyRule]>,
    round: u64,
}

impl Memory {
    pub(super) fn proxy(&mut self, proxy: &FetchrProxy) -> Known {
        self.of(&proxy.metadata, || (proxy.spec.check(), Arc::new([])))
    }

    pub(super) fn policy(&mut self, policy: &FetchrPolicy) -> Known {
        self.of(&policy.metadata, || (policy.spec.check(), policy.spec.rules.clone().into()))
    }

    /// Forgets what no compilation has asked for since the last call.
    pub(super) fn forget(&mut self) {
        let round = self.round;
        self.known.retain(|_, known| known.round == round);
        self.round += 1;
    }

    fn of(&mut self, metadata: &ObjectMeta, look: impl FnOnce() -> (Problems, Arc<[PolicyRule]>)) -> Known {
        let round = self.round;
        let look = || {
            let (problems, rules) = look();
            Known { problems: Arc::new(problems), rules, round }
        };
        let (Some(uid), Some(generation)) = (&metadata.uid, metadata.generation) else {
            return look();
        };
        let known = self.known.entry((uid.clone(), generation)).or_insert_with(look);
        known.round = round;
        known.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::FetchrProxySpec;

    fn proxy(uid: &str, generation: i64, workers: i32) -> FetchrProxy {
        let mut proxy = FetchrProxy::new("web", FetchrProxySpec { workers: Some(workers), ..FetchrProxySpec::default() });
        (proxy.metadata.uid, proxy.metadata.generation) = (Some(uid.to_owned()), Some(generation));
        proxy
    }

    #[test]
    fn object_is_looked_at_once_for_each_generation() {
        let mut memory = Memory::default();
        let first = memory.proxy(&proxy("u1", 1, 1)).problems;
        assert!(Arc::ptr_eq(&first, &memory.proxy(&proxy("u1", 1, 1)).problems));
        assert!(!Arc::ptr_eq(&first, &memory.proxy(&proxy("u1", 2, 1)).problems));
        assert!(!Arc::ptr_eq(&first, &memory.proxy(&proxy("u2", 1, 1)).problems));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut memory = Memory::default();
        memory.proxy(&proxy("goes", 1, 1));
        memory.proxy(&proxy("stays", 1, 1));
        memory.forget();
        memory.proxy(&proxy("stays", 1, 1));
        memory.forget();
        assert_eq!(memory.known.keys().collect::<Vec<_>>(), [&("stays".to_owned(), 1)]);
    }
}
