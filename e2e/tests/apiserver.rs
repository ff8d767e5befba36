//! The bare API server does what tests rely on.

use e2e::apiserver::ApiServer;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

#[tokio::test]
async fn object_is_stored_and_read_back() {
    let server = ApiServer::shared().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(server.client().await.unwrap(), "default");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "stored"}, "data": {"a": "1"}});
    maps.patch("stored", &PatchParams::apply("e2e"), &Patch::Apply(&map)).await.unwrap();
    assert_eq!(maps.get("stored").await.unwrap().data.unwrap()["a"], "1");
}

#[tokio::test]
async fn impersonated_user_has_only_own_rights() {
    let server = ApiServer::shared().await.unwrap();
    let mut config = server.config().await.unwrap();
    config.auth_info.impersonate = Some("nobody".to_owned());
    let namespaces: Api<Namespace> = Api::all(kube::Client::try_from(config).unwrap());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "denied"}})).unwrap();
    let error = namespaces.create(&PostParams::default(), &namespace).await.unwrap_err();
    assert!(error.to_string().contains("User \"nobody\" cannot create resource \"namespaces\""), "{error}");
}
