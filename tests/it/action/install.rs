//! How the action gets the program: from a host of releases on loopback.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use autoheal_pa::emulator::Config;
use serde_json::json;

use super::{
    super::support::{Lab, PROGRAM, kubectl},
    Answer, Host, UP, real,
    runner::Job,
    stand_in, with,
};

/// Releases are built for these.
const TARGET: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-musl" } else { "x86_64-unknown-linux-musl" };

/// Packs a program as a release does. Returns the archive's name, its bytes and its checksum.
pub(crate) fn release(folder: &Path, program: &Path) -> (String, Vec<u8>, String) {
    let top = format!("autoheal-pa-0.1.0-{TARGET}");
    let archive = format!("{top}.tar.gz");
    let root = folder.join("release").join(&top);
    fs::create_dir_all(root.join("man")).unwrap();
    fs::write(root.join("README.md"), "# autoheal-pa\n").unwrap();
    fs::write(root.join("man/autoheal-pa.1"), "x".repeat(700)).unwrap();
    fs::copy(program, root.join("autoheal-pa")).unwrap();
    let mut tar = Command::new("tar");
    tar.current_dir(folder.join("release")).args(["-czf", &archive, &top]);
    assert!(tar.status().unwrap().success());
    let sums = Command::new("sha256sum").arg(folder.join("release").join(&archive)).output().unwrap();
    let sum = String::from_utf8(sums.stdout).unwrap()[..64].to_owned();
    (archive.clone(), fs::read(folder.join("release").join(archive)).unwrap(), sum)
}

/// Where the files of the release are.
fn base() -> String {
    "/acme/autoheal-pa/releases/download/v0.1.0".to_owned()
}

/// A host with these files, and nothing else.
async fn host(files: impl IntoIterator<Item = (String, Answer)>) -> Host {
    let files: BTreeMap<_, _> = files.into_iter().collect();
    Host::start(move |request, _| files.get(&request.target).cloned().unwrap_or(Answer::Status(404))).await
}

/// The release of a program, and its SHA256SUMS.
fn files(archive: &str, bytes: &[u8], sum: &str) -> Vec<(String, Answer)> {
    let sums = format!("{}  other.tar.gz\n{sum}  {archive}\n", "0".repeat(64));
    vec![
        (format!("{}/SHA256SUMS", base()), Answer::Whole(sums.into_bytes())),
        (format!("{}/{archive}", base()), Answer::Whole(bytes.to_vec())),
    ]
}

fn come_from(job: &mut Job<'_>, host: &Host) {
    job.set("GITHUB_SERVER_URL", &format!("http://{}", host.address));
    job.set("GITHUB_API_URL", &format!("http://{}/api/v3", host.address));
    job.set("GITHUB_ACTION_REPOSITORY", "acme/autoheal-pa");
}

/// What is in the tool cache.
fn tools(job: &Job<'_>) -> usize {
    let folder = job.folder.join("tools/autoheal-pa/0.1.0");
    fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_installed_and_kept() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let script = lab.path("program");
    fs::write(&script, format!("#!/bin/sh\nexec '{PROGRAM}' \"$@\"\n")).unwrap();
    let (archive, bytes, sum) = release(&lab.path(""), &script);
    let host = host(files(&archive, &bytes, &sum)).await;
    come_from(&mut job, &host);
    // By the tag that it is used by.
    job.set("GITHUB_ACTION_REF", "v0.1.0");
    let inputs = real(&lab);
    let step = job.uses(&with(&inputs, &[("path", ""), ("clusters", "payments")])).await;
    step.assert_success();
    assert!(step.ended.stdout.contains(&format!("installed 0.1.0 from `acme/autoheal-pa`, sha256 {sum}")), "{step:#?}");
    assert!(step.outputs["path"].starts_with(job.folder.join("tools").to_str().unwrap()), "{step:#?}");
    if kubectl().is_some() {
        let pods = job.run("autoheal-pa --version && kubectl get pods -A --context pa-payments").await;
        assert!(pods.ended.assert_success().contains("kube-system"), "{pods:#?}");
    }
    assert_eq!(host.targets(), [format!("{}/SHA256SUMS", base()), format!("{}/{archive}", base())]);

    // Again it is there, and with a checksum nothing at all is asked for.
    job.set("GITHUB_ACTION_REF", "5f93c3a0");
    let pinned = [("path", ""), ("version", "v0.1.0"), ("sha256", sum.as_str()), ("clusters", "search")];
    let again = job.uses(&with(&inputs, &pinned)).await;
    again.assert_success();
    assert!(again.ended.stdout.contains("0.1.0 is in the tool cache"), "{again:#?}");
    assert_eq!((host.targets().len(), tools(&job)), (2, 1));
    for step in job.end().await {
        step.assert_success();
    }
    lab.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_with_another_checksum_is_not_unpacked() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let program = stand_in(&job.folder, UP, "true");
    let (archive, bytes, sum) = release(&job.folder, &program);
    let other = "a".repeat(64);
    let host = host(files(&archive, &bytes, &other)).await;
    come_from(&mut job, &host);
    let step = job.uses(&[("version", "0.1.0")]).await;
    let wrong =
        format!("the checksum of `{archive}` is wrong: it is {sum}, and SHA256SUMS has {other}. Nothing was unpacked.");
    assert!(step.error().starts_with(&wrong), "{}", step.error());

    // With one that is given, SHA256SUMS is not believed, not even read; of several the right one counts.
    let one = "b".repeat(64);
    let step = job.uses(&[("version", "0.1.0"), ("sha256", &one)]).await;
    assert!(step.error().contains(&format!("it is {sum}, and the input `sha256` has {one}.")), "{}", step.error());
    assert_eq!(tools(&job), 0);
    let asked = host.targets().len();
    job.uses(&[("version", "0.1.0"), ("sha256", &format!("{one}\n{}", sum.to_uppercase()))]).await.assert_success();
    assert_eq!(host.targets()[asked..], [format!("{}/{archive}", base())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_release_is_named() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let (archive, bytes, sum) = release(&job.folder, &stand_in(&job.folder, UP, "true"));
    let host = host(files("other.tar.gz", &bytes, &sum)).await;
    come_from(&mut job, &host);
    let step = job.uses(&[("version", "0.2.0")]).await;
    assert!(
        step.error().contains("/v0.2.0/SHA256SUMS` answers with HTTP status 404: has `acme/autoheal-pa` a release"),
        "{step:#?}"
    );
    assert!(step.error().ends_with("if it is private, give the input `token`"), "{step:#?}");
    let step = job.uses(&[("version", "0.1.0")]).await;
    assert_eq!(step.error(), format!("SHA256SUMS of the release has no `{archive}`"));
    // Somewhere else it may be there.
    let step = job.uses(&[("version", "0.1.0"), ("repository", "fork/autoheal-pa")]).await;
    assert!(step.error().contains("/fork/autoheal-pa/releases/download/v0.1.0/SHA256SUMS`"), "{step:#?}");

    job.set("NODE_OPTIONS", "--import=data:text/javascript,Object.defineProperty(process,'arch',{value:'riscv64'})");
    let step = job.uses(&[("version", "0.1.0")]).await;
    assert!(step.error().starts_with("no release is built for linux on riscv64, only for `x86_64-"), "{step:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_without_the_program_is_named() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let folder = job.folder.join("other");
    fs::create_dir(&folder).unwrap();
    let program = stand_in(&job.folder, UP, "true");
    let (archive, bytes, _) = release(&job.folder, &program);
    // A tar that ends within the program, a program of another name, and something else.
    let gzip = |bytes: &[u8], name: &str| {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        assert!(Command::new("gzip").arg(&path).status().unwrap().success());
        fs::read(path.with_extension("gz")).unwrap()
    };
    let plain = {
        let path = folder.join("whole.gz");
        fs::write(&path, &bytes).unwrap();
        Command::new("gzip").args(["-dc"]).arg(path).output().unwrap().stdout
    };
    let name = format!("autoheal-pa-0.1.0-{TARGET}/autoheal-pa\0");
    let at = plain.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
    let mut renamed = plain.clone();
    renamed[at] = b'b';
    for (bytes, said) in [
        (gzip(&plain[..at + 600], "short"), "the archive cannot be read: it ends within a file".to_owned()),
        (gzip(&renamed, "renamed"), format!("the archive has no file `{}`", name.trim_end_matches('\0'))),
        (gzip(&[b'x'; 2048], "text"), "the archive cannot be read: it is not a plain tar".to_owned()),
        (b"text".to_vec(), "the archive cannot be unpacked: incorrect header check".to_owned()),
    ] {
        let path = folder.join("sum");
        fs::write(&path, &bytes).unwrap();
        let sum = Command::new("sha256sum").arg(path).output().unwrap().stdout;
        let sum = String::from_utf8(sum).unwrap()[..64].to_owned();
        let host = host(files(&archive, &bytes, &sum)).await;
        come_from(&mut job, &host);
        let step = job.uses(&[("version", "0.1.0")]).await;
        assert_eq!(step.error(), said);
        assert_eq!(tools(&job), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_that_break_are_tried_again() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let program = stand_in(&job.folder, UP, "true");
    let (archive, bytes, sum) = release(&job.folder, &program);
    let half = bytes[..bytes.len() / 2].to_vec();
    let whole = bytes.clone();
    let storage = Host::start(move |_, before| match before {
        0 => Answer::Cut(half.clone()),
        1 => Answer::Status(503),
        _ => Answer::Whole(whole.clone()),
    })
    .await;
    let to = format!("http://{}/blob?sig=x", storage.address);
    let releases = Host::start(move |_, _| Answer::Redirect(to.clone())).await;
    come_from(&mut job, &releases);
    let step = job.uses(&[("version", "0.1.0"), ("sha256", &sum)]).await;
    step.assert_success();
    assert_eq!(step.ended.stdout.matches("; trying again\n").count(), 2, "{step:#?}");
    assert_eq!(releases.targets(), vec![format!("{}/{archive}", base()); 3]);

    // One that is always cut is never taken for whole, not even by a checksum of what has come.
    let half = bytes[..bytes.len() / 2].to_vec();
    let cut = Host::start(move |_, _| Answer::Cut(half.clone())).await;
    come_from(&mut job, &cut);
    fs::remove_dir_all(job.folder.join("tools/autoheal-pa")).unwrap();
    let step = job.uses(&[("version", "0.1.0"), ("sha256", &sum)]).await;
    assert!(
        step.error().contains(" cannot be downloaded: ") && step.error().ends_with(", after 3 attempts"),
        "{step:#?}"
    );
    assert_eq!(tools(&job), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_end_and_do_not_leave_tls() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let round = Host::start(|request, _| Answer::Redirect(request.target.clone())).await;
    come_from(&mut job, &round);
    let step = job.uses(&[("version", "0.1.0")]).await;
    assert!(step.error().ends_with("leads from one address to another without an end"), "{step:#?}");
    let other = Host::start(|_, _| Answer::Redirect("file:///etc/passwd".to_owned())).await;
    come_from(&mut job, &other);
    let step = job.uses(&[("version", "0.1.0")]).await;
    assert!(step.error().ends_with("leads to `file:`, which is not taken for safe"), "{step:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn private_releases_are_had_with_a_token_that_goes_nowhere_else() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let program = stand_in(&job.folder, UP, "true");
    let (archive, bytes, sum) = release(&job.folder, &program);
    let storage = Host::start(move |_, _| Answer::Whole(bytes.clone())).await;
    let to = format!("http://{}/blob", storage.address);
    let name = archive.clone();
    let api = Host::start(move |request, _| {
        if request.header("authorization") != Some("bearer of-a-secret") {
            return Answer::Status(404);
        }
        let releases = "/api/v3/repos/acme/autoheal-pa/releases";
        match (request.target.strip_prefix(releases).unwrap_or_default(), request.header("accept")) {
            ("/tags/v0.1.0", Some("application/vnd.github+json")) => {
                let assets = json!({"assets": [{"name": "SHA256SUMS", "id": 7}, {"name": name, "id": 8}]});
                Answer::Whole(assets.to_string().into_bytes())
            }
            ("/assets/7", Some("application/octet-stream")) => Answer::Whole(format!("{sum}  {name}\n").into_bytes()),
            ("/assets/8", Some("application/octet-stream")) => Answer::Redirect(to.clone()),
            _ => Answer::Status(404),
        }
    })
    .await;
    come_from(&mut job, &api);
    let step = job.uses(&[("version", "0.1.0"), ("token", "of-a-secret")]).await;
    step.assert_success();
    assert_eq!(step.masks, ["of-a-secret"]);
    assert_eq!(step.ended.stdout.matches("of-a-secret").count(), 1, "{step:#?}");
    assert_eq!(storage.requests().iter().filter_map(|request| request.header("authorization")).count(), 0);
    assert_eq!(storage.requests().len(), 1);

    let step = job.uses(&[("version", "0.1.0"), ("token", "of-another")]).await;
    assert!(step.error().contains("/releases/tags/v0.1.0` answers with HTTP status 404"), "{step:#?}");
    assert!(step.error().ends_with("and may the token read its contents?"), "{step:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn releases_are_had_through_the_proxy_of_the_job() {
    let lab = Lab::start(Config::default()).await;
    let Some(mut job) = Job::start(&lab) else { return };
    let program = stand_in(&job.folder, UP, "true");
    let (archive, bytes, sum) = release(&job.folder, &program);
    let proxy = Host::start(move |_, _| Answer::Whole(bytes.clone())).await;
    come_from(&mut job, &proxy);
    job.set("GITHUB_SERVER_URL", "http://github.invalid");
    job.set("HTTP_PROXY", &format!("http://{}", proxy.address));
    job.uses(&[("version", "0.1.0"), ("sha256", &sum)]).await.assert_success();
    assert_eq!(proxy.targets(), [format!("http://github.invalid{}/{archive}", base())]);
}
