//! The Kubernetes API over TLS, with bearer tokens.

use std::sync::Arc;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tokio_rustls::TlsConnector;

use super::{
    super::{ClusterConfig, Config, Emulator},
    support::{Answer, TestKeys, call, exchange, quick, start, within},
};

fn token(emulator: &Emulator, cluster: &str) -> String {
    let keys = TestKeys::of(emulator);
    let url = keys.signer("sts").caller_identity_url(cluster);
    format!("k8s-aws-v1.{}", URL_SAFE_NO_PAD.encode(url))
}

/// One request over TLS, verified as EKS describes the cluster; the error is that of TLS.
async fn request(
    emulator: &Emulator,
    cluster: &str,
    token: &str,
    call_to: (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer, String> {
    let keys = TestKeys::of(emulator);
    let described = call(emulator, &keys.signer("eks"), "GET", &format!("/clusters/{cluster}"), &[], "").await.json();
    let pem = STANDARD.decode(described["cluster"]["certificateAuthority"]["data"].as_str().unwrap()).unwrap();
    let host = described["cluster"]["endpoint"].as_str().unwrap().replace("https://", "");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let server = emulator.api_servers().into_iter().find(|server| server.cluster == cluster).unwrap();
    let tcp = within(server.place.connect()).await.unwrap();
    let tls = within(connector.connect(ServerName::try_from(host.clone()).unwrap(), tcp))
        .await
        .map_err(|error| error.to_string())?;
    let mut all = vec![("host".to_owned(), host), ("authorization".to_owned(), format!("Bearer {token}"))];
    all.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Ok(exchange(tls, call_to.0, call_to.1, &all, body).await)
}

async fn get(emulator: &Emulator, token: &str, path: &str) -> Answer {
    request(emulator, "payments", token, ("GET", path), &[], "").await.unwrap()
}

#[tokio::test]
async fn tells_good_tokens_from_bad_ones() {
    let mut config: Config = quick();
    config.clusters.push(ClusterConfig { access_entry: false, ..ClusterConfig::new("closed") });
    let emulator = start(config).await;
    let good = token(&emulator, "payments");
    assert_eq!(get(&emulator, &good, "/api/v1/nodes").await.status, 200);
    let keys = TestKeys::of(&emulator);
    let mut old = keys.signer("sts");
    old.wall -= std::time::Duration::from_secs(901);
    let url = keys.signer("sts").caller_identity_url("payments");
    let wrap = |url: &str| format!("k8s-aws-v1.{}", URL_SAFE_NO_PAD.encode(url));
    let bad = [
        String::new(),
        "nonsense".to_owned(),
        token(&emulator, "search"),
        wrap(&old.caller_identity_url("payments")),
        wrap(&url.replace("https://", "http://")),
        wrap(&url.replace("sts.us-east-1.amazonaws.com", "127.0.0.1")),
        wrap(&url.replace("X-Amz-Expires=60", "X-Amz-Expires=901")),
        wrap(&format!("{url}&Extra=1")),
        wrap(&format!("{url}&Version=2011-06-15")),
        format!("{good}{}", "x".repeat(4096)),
    ];
    for token in bad {
        let answer = get(&emulator, &token, "/api/v1/nodes").await;
        assert_eq!((answer.status, answer.json()["reason"].as_str()), (401, Some("Unauthorized")), "{token}");
    }
    assert_eq!(get(&emulator, "", "/livez").await.body, "ok");
    assert_eq!(get(&emulator, "", "/version").await.json()["minor"], "33");
    let closed =
        request(&emulator, "closed", &token(&emulator, "closed"), ("GET", "/api/v1/pods"), &[], "").await.unwrap();
    assert_eq!(closed.status, 401);
    emulator.stop().await;
}

#[tokio::test]
async fn every_path_is_taken_with_and_without_a_slash_at_the_end() {
    let emulator = start(quick()).await;
    let token = token(&emulator, "payments");
    for path in [
        "/version",
        "/livez",
        "/readyz",
        "/healthz",
        "/api",
        "/apis",
        "/api/v1",
        "/apis/apps",
        "/apis/apps/v1",
        "/openapi/v3",
        "/openapi/v3/api/v1",
        "/api/v1/nodes",
        "/api/v1/namespaces/demo",
        "/api/v1/namespaces/demo/configmaps",
        "/apis/apps/v1/deployments",
    ] {
        let (without, with) =
            (get(&emulator, &token, path).await, get(&emulator, &token, &format!("{path}/?limit=500")).await);
        assert_eq!((without.status, with.status), (200, 200), "{path}");
        assert_eq!(without.body, with.body, "{path}");
    }
    assert_eq!(get(&emulator, "", "/version/").await.json()["minor"], "33", "everybody may see it");
    assert_eq!(get(&emulator, &token, "/apis/none/").await.status, 404);
    emulator.stop().await;
}

#[tokio::test]
async fn a_wrong_certificate_does_not_verify() {
    let emulator = start(quick()).await;
    emulator.update(|settings| settings.wrong_certificate = true);
    let error = request(&emulator, "payments", "", ("GET", "/livez"), &[], "").await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    emulator.stop().await;
}

#[tokio::test]
async fn config_maps_can_be_written() {
    let emulator = start(quick()).await;
    let token = token(&emulator, "payments");
    let base = "/api/v1/namespaces/demo/configmaps";
    let send = async |method: &str, path: &str, kind: &str, body: Value| {
        let headers = [("content-type", kind)];
        request(&emulator, "payments", &token, (method, path), &headers, &body.to_string()).await.unwrap()
    };
    let one = format!("{base}/one");
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"a": "1"}});
    let created = send("POST", base, "application/json", object.clone()).await;
    assert_eq!(created.status, 201, "{created:?}");
    assert_eq!(send("POST", base, "application/json", object.clone()).await.status, 409);
    let merge = json!({"data": {"b": "2", "a": null}, "metadata": "not an object"});
    assert_eq!(send("PATCH", &one, "application/merge-patch+json", merge).await.json()["data"], json!({"b": "2"}));
    let mut stale = created.json();
    stale["data"] = json!({});
    assert_eq!(send("PUT", &one, "application/json", stale).await.status, 409);
    let apply = format!("{one}?fieldManager=test&force=true");
    let mut applied = object.clone();
    applied["data"] = json!({"c": "3", "d": "4"});
    assert_eq!(
        send("PATCH", &apply, "application/apply-patch+yaml", applied).await.json()["data"],
        json!({"b": "2", "c": "3", "d": "4"})
    );
    let mut applied = object;
    applied["data"] = json!({"c": "5"});
    assert_eq!(
        send("PATCH", &apply, "application/apply-patch+yaml", applied).await.json()["data"],
        json!({"b": "2", "c": "5"})
    );
    for (body, path) in [
        (json!({"metadata": {"name": "x"}, "data": {"a": 1}}), base.to_owned()),
        (json!({"kind": "Pod", "metadata": {"name": "x"}}), base.to_owned()),
        (json!({"metadata": {"name": "x"}, "dota": {}}), format!("{base}?fieldValidation=Strict")),
        (json!([]), base.to_owned()),
    ] {
        assert_eq!(send("POST", &path, "application/json", body).await.status, 400);
    }
    assert_eq!(send("DELETE", &one, "application/json", json!({})).await.json()["status"], "Success");
    assert_eq!(get(&emulator, &token, &one).await.status, 404);
    assert_eq!(send("DELETE", "/api/v1/namespaces/demo/pods/chatty", "application/json", json!({})).await.status, 405);
    emulator.stop().await;
}

#[tokio::test]
async fn watches_follow_changes_and_end_in_time() {
    let emulator = start(quick()).await;
    let token = token(&emulator, "payments");
    let list = get(&emulator, &token, "/api/v1/namespaces/demo/configmaps").await.json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let object = json!({"metadata": {"name": "one"}, "data": {}}).to_string();
    let path = "/api/v1/namespaces/demo/configmaps";
    let created =
        request(&emulator, "payments", &token, ("POST", path), &[("content-type", "application/json")], &object).await;
    assert_eq!(created.unwrap().status, 201);
    let watch = format!("{path}?watch=true&resourceVersion={version}&timeoutSeconds=1");
    let answer = get(&emulator, &token, &watch).await;
    assert!(answer.body.contains(r#""type":"ADDED""#), "{answer:?}");
    let old = get(&emulator, &token, &format!("{path}?watch=true&resourceVersion=1")).await;
    assert_eq!(old.status, 410);
    emulator.stop().await;
}

#[tokio::test]
async fn tables_are_given_to_those_who_ask() {
    let emulator = start(quick()).await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let token = token(&emulator, "payments");
    let table = request(&emulator, "payments", &token, ("GET", "/api/v1/pods"), &accept, "").await.unwrap().json();
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["rows"].as_array().unwrap().len(), 8);
    assert_eq!(table["rows"][2]["cells"][0], "chatty");
    emulator.stop().await;
}

#[tokio::test]
async fn who_has_no_view_policy_is_told_who_he_is_and_no_more() {
    let emulator = start(quick()).await;
    let good = token(&emulator, "payments");
    let post = async |path: &str, body: &str| {
        request(&emulator, "payments", &good, ("POST", path), &[("content-type", "application/json")], body)
            .await
            .unwrap()
    };
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let may_i = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let list_pods = r#"{"spec":{"resourceAttributes":{"verb":"list","resource":"pods"}}}"#;
    assert_eq!(post(may_i, list_pods).await.json()["status"]["allowed"], true);

    emulator.update(|settings| settings.no_view_policy = true);
    assert_eq!(post(may_i, list_pods).await.json()["status"]["allowed"], false);
    assert_eq!(get(&emulator, &good, "/livez").await.status, 200);
    let pods = get(&emulator, &good, "/api/v1/pods").await;
    assert_eq!((pods.status, &pods.json()["reason"]), (403, &"Forbidden".into()));
    let review = post(whoami, "{}").await;
    assert!(review.json()["status"]["userInfo"]["username"].as_str().unwrap().contains(":assumed-role/"));

    emulator.update(|settings| settings.no_access_entry = true);
    for path in ["/livez", "/version", "/api/v1/pods"] {
        assert_eq!(get(&emulator, &good, path).await.status, 401, "{path}");
    }
}
