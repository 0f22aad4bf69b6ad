//! Pod logs: a few lines of most pods, and one that writes a line every 100 ms.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::Value;

use super::{
    super::{
        clock::extended_date,
        http::{Response, response, with_body},
    },
    Api,
};

/// How often the chatty pod writes a line.
const CHATTY_INTERVAL: Duration = Duration::from_millis(100);

/// Lines of the chatty pod that are kept.
const CHATTY_KEPT: u64 = 50;

/// Label of the pod that never stops writing.
pub(super) const CHATTY: &str = "chatty";

/// Answers a request for the log of a pod.
pub(super) fn answer(api: &Arc<Api>, pod: &Value, parameters: &[(String, String)]) -> Response {
    let flag =
        |name: &str| parameters.iter().any(|(key, value)| key == name && matches!(value.as_str(), "true" | "1" | ""));
    let tail = parameters.iter().find(|(key, _)| key == "tailLines").and_then(|(_, value)| value.parse::<u64>().ok());
    let timestamps = flag("timestamps");
    if pod["metadata"]["labels"]["app"] != CHATTY {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let lines = [format!("{name} starting"), "listening on :8080".to_owned(), "ready".to_owned()];
        let skip = tail.map_or(0, |tail| lines.len().saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX)));
        let text: String = lines.iter().skip(skip).map(|text| line(api.started, timestamps, text)).collect();
        if flag("follow") {
            let idle =
                stream::once(async { Ok::<_, Infallible>(Frame::data(Bytes::from(text))) }).chain(stream::pending());
            return with_body(200, "text/plain", StreamBody::new(idle).boxed_unsync());
        }
        return response(200, "text/plain", text);
    }
    let written = lines_written(api);
    let first = written.saturating_sub(tail.unwrap_or(CHATTY_KEPT).min(CHATTY_KEPT));
    if !flag("follow") {
        let text: String = (first..written).map(|n| chatty_line(api, timestamps, n)).collect();
        return response(200, "text/plain", text);
    }
    let api = api.clone();
    let lines = stream::unfold(first, move |next| {
        let api = api.clone();
        async move {
            let due = api.started + CHATTY_INTERVAL * u32::try_from(next).unwrap_or(u32::MAX);
            tokio::time::sleep(due.saturating_sub(api.world.clock.wall())).await;
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from(chatty_line(&api, timestamps, next)))), next + 1))
        }
    });
    with_body(200, "text/plain", StreamBody::new(lines).boxed_unsync())
}

fn lines_written(api: &Api) -> u64 {
    let since = api.world.clock.wall().saturating_sub(api.started);
    u64::try_from(since.as_millis() / CHATTY_INTERVAL.as_millis()).unwrap_or_default() + 1
}

fn chatty_line(api: &Api, timestamps: bool, number: u64) -> String {
    let at = api.started + CHATTY_INTERVAL * u32::try_from(number).unwrap_or(u32::MAX);
    line(at, timestamps, &format!("line {number}: still talking"))
}

fn line(at: Duration, timestamps: bool, text: &str) -> String {
    if timestamps { format!("{} {text}\n", extended_date(at)) } else { format!("{text}\n") }
}
