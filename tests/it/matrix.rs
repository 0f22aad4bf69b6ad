//! Every row of the fault matrix, with one seed, on virtual time; and the page of what 20 seeds came to.

use std::path::Path;

use super::support::PROGRAM;
use crate::lab::{matrix::ROWS, page, process::PROCESS_ROWS, soak};

/// Makes a test of each row.
macro_rules! rows {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                survives(stringify!($name));
            }
        )*

        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

rows! {
    nothing websocket_reset close_1000 silence silence_upstream silence_downstream half_open loss_1 loss_5 loss_20
    duplication reordering pause resume_refused resume_throttled token_rejected credentials_expired session_ended
    start_fails agent_death bastion_offline close_storm destination_refuses destination_black_holed api_restart
    clock_jump nap night
}

#[track_caller]
fn survives(name: &str) {
    let row = ROWS.iter().find(|row| row.name.replace('-', "_") == name).expect("the row is in the matrix");
    if let Err(wrong) = row.run(1) {
        panic!("{wrong}");
    }
}

#[test]
fn every_row_is_a_test_and_is_on_the_page() {
    let rows: Vec<String> = ROWS.iter().map(|row| row.name.replace('-', "_")).collect();
    assert_eq!(rows, NAMES);
    let page = std::fs::read_to_string(page::PATH).unwrap();
    let missing: Vec<_> =
        ROWS.iter().filter(|row| !page.contains(&format!("\n| `{}` | {} |", row.name, row.what))).collect();
    assert!(missing.is_empty(), "write the page again: {:?}", missing.iter().map(|row| row.name).collect::<Vec<_>>());
    let missing: Vec<_> =
        PROCESS_ROWS.iter().map(|row| row.name).filter(|name| !page.contains(&format!("\n| `{name}` | "))).collect();
    assert!(missing.is_empty(), "write the page again: {missing:?}");
    let sources: String = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let names = page.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() > 2);
    let unknown: Vec<_> = names.filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn faults_of_the_process() {
    for row in PROCESS_ROWS {
        for seed in [3, 9] {
            if let Err(wrong) = row.run(Path::new(PROGRAM), seed) {
                panic!("{wrong}");
            }
        }
    }
}

/// One day here, thirty by `cargo run --release --example soak`.
#[test]
fn a_day_leaves_nothing_behind() {
    for sessions in [1, 3] {
        if let Err(wrong) = soak::soak(1, 1, sessions) {
            panic!("{sessions} sessions: {wrong}");
        }
    }
}
