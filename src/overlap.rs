//! Two things at once, of which one matters first.

use std::pin::{Pin, pin};

use futures_util::future::{Either, Ready, ready, select};

/// What is left of a future that others were polled with: more to wait for, or only its outcome.
pub type Rest<F> = Either<Pin<Box<F>>, Ready<<F as Future>::Output>>;

/// Waits for `first`, and gets on with `second` meanwhile. Returns what `first` has come to, and what is left of
/// `second`: whatever that comes to, an error too, is only seen by whoever waits for it then.
///
/// # Errors
/// That of `first`, at once; `second` is dropped.
pub async fn overlap<T, E, S: Future>(first: impl Future<Output = Result<T, E>>, second: S) -> Result<(T, Rest<S>), E> {
    match select(pin!(first), Box::pin(second)).await {
        Either::Left((first, second)) => Ok((first?, Either::Left(second))),
        Either::Right((second, first)) => Ok((first.await?, Either::Right(ready(second)))),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    type Outcome = Result<u8, &'static str>;

    #[tokio::test]
    async fn takes_them_in_order_however_they_end() {
        let (go, gone) = oneshot::channel();
        // The first needs the second to run, and the second needs longer.
        let (first, second) = overlap(async { gone.await.map_err(|_| "gone") }, async {
            go.send(1).unwrap();
            tokio::task::yield_now().await;
            Outcome::Err("late")
        })
        .await
        .unwrap();
        assert_eq!((first, second.await), (1, Err("late")));

        let slow = async { Outcome::Ok(tokio::task::yield_now().map(|()| 2).await) };
        let (first, second) = overlap(slow, async { Outcome::Err("early") }).await.unwrap();
        assert_eq!((first, second.await), (2, Err("early")));
    }

    #[tokio::test]
    async fn an_error_of_the_first_ends_both() {
        let outcome = overlap(async { Outcome::Err("first") }, std::future::pending::<()>()).await;
        assert_eq!(outcome.map(|(first, _)| first), Err("first"));
    }
}
