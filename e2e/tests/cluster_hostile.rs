//! Objects that nobody would write do not hurt the operator.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use e2e::faults::hostile;
use e2e::testbed::with_namespace;

#[tokio::test]
async fn random_objects_are_refused_with_a_path_or_accepted_and_the_operator_stays_calm() {
    with_namespace(async |namespace| {
        println!("{}", hostile::objects(&namespace, 300, 1).await.unwrap());
    })
    .await;
}
