//! Slow lines and slow readers, on virtual time. The whole grid of lines is `bench --only line`.

use crate::lab::{
    line::{Bulk, Cell},
    slow_readers,
};

/// What gets through has to be 0.9 of what the line carries, on one transport of one session, and nothing goes wrong.
#[track_caller]
fn carries(cell: &Cell) {
    let outcome = cell.run(7).unwrap();
    assert!(outcome.share() >= 0.9, "{}: {:.3} in {outcome:?}", cell.name(), outcome.share());
    assert_eq!((outcome.transports, outcome.sessions, &outcome.last_error), (1, 1, &None), "{}", cell.name());
    // A queue on the way up may come on top of what the line's own queue takes.
    assert!(outcome.request < outcome.request_least * 2 + std::time::Duration::from_secs(1), "{outcome:?}");
}

#[test]
fn a_download_over_a_slow_line_keeps_its_rate_on_one_transport() {
    carries(&Cell::even(125, 1000, 0.0, Bulk::Down));
}

#[test]
fn a_download_behind_a_minute_of_queue_keeps_its_rate_on_one_transport() {
    carries(&Cell::even(64, 4000, 0.0, Bulk::Down));
}

#[test]
fn an_upload_beside_a_download_over_a_slow_line_keeps_its_rate() {
    carries(&Cell::even(125, 1000, 0.0, Bulk::Both));
}

#[test]
fn an_upload_over_a_slow_line_builds_no_queue() {
    carries(&Cell::even(250, 4000, 0.0, Bulk::Up));
}

#[test]
fn a_line_that_loses_segments_is_used() {
    carries(&Cell::even(500, 1000, 0.01, Bulk::Both));
}

#[test]
fn a_way_up_that_is_too_slow_for_acknowledgements_stops_nothing() {
    let uneven = Cell::grid().into_iter().find(|cell| cell.up.rate < cell.down.rate && cell.bulk == Bulk::Down);
    let outcome = uneven.expect("it is in the grid").run(7).unwrap();
    assert!(outcome.share() >= 0.8, "{outcome:?}");
    assert_eq!((outcome.transports, outcome.sessions), (1, 1));
}

/// Every byte arrives, what is held stays within the budget, and new connections wait as long as without them.
#[track_caller]
fn never_cut(sessions: usize) {
    let outcome = slow_readers::run(sessions, 3).unwrap();
    assert!(outcome.beside <= outcome.before * 2, "{outcome:?}");
    assert!(outcome.rates[0] > 9.0, "{outcome:?}");
}

#[test]
fn slow_readers_are_never_cut_in_one_session() {
    never_cut(1);
}

#[test]
fn slow_readers_are_never_cut_in_sixteen_sessions() {
    never_cut(16);
}
