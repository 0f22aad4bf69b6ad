//! Every row of the fault matrix, with one seed, on virtual time; and the page of what 20 seeds came to.

use std::path::Path;

use super::support::PROGRAM;
use crate::lab::{matrix, page, process::PROCESS_ROWS, soak, ssh::sshd, ssh_rows::SSH_ROWS};

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

/// The same of the rows of SSH servers, which take real time.
macro_rules! ssh_rows {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                survives_with_server(stringify!($name));
            }
        )*
    };
}

include!("matrix/rows.rs");

#[track_caller]
fn survives(name: &str) {
    let mut rows = matrix::rows().into_iter();
    let row = rows.find(|row| row.name.replace('-', "_") == name).expect("the row is in the matrix");
    if let Err(wrong) = row.run(1) {
        panic!("{wrong}");
    }
}

#[track_caller]
fn survives_with_server(name: &str) {
    let row = SSH_ROWS.iter().find(|row| row.name.replace('-', "_") == name).expect("the row is in the matrix");
    let Some(server) = sshd().unwrap() else { return };
    if let Err(wrong) = row.run(&server, 1) {
        panic!("{wrong}");
    }
}

#[test]
fn every_row_is_a_test_and_is_on_the_page() {
    let rows = matrix::rows();
    assert_eq!(std::fs::read_to_string(page::TESTS_PATH).unwrap(), page::tests(&rows), "write the page again");
    assert_eq!(NAMES.len(), rows.len());
    let page = std::fs::read_to_string(page::PATH).unwrap();
    let missing: Vec<_> =
        rows.iter().filter(|row| !page.contains(&format!("\n| `{}` | {} |", row.name, row.what))).collect();
    assert!(missing.is_empty(), "write the page again: {:?}", missing.iter().map(|row| row.name).collect::<Vec<_>>());
    assert!(page.contains(page::SSH), "write the page again");
    let missing: Vec<_> =
        SSH_ROWS.iter().filter(|row| !page.contains(&format!("\n| `{}` | {} |", row.name, row.what))).collect();
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
fn a_page_is_written_again_row_by_row() {
    let (page, rows) = (std::fs::read_to_string(page::PATH).unwrap(), matrix::rows());
    assert_eq!(page::with_rows(&page, &rows, &[]), page);
    let new = [
        "| `silence` | a | b | c | d | e | f | x \\| y |",
        "| `silence` | a | b | c | d |",
        "| `ssh-killed` | a | b | c | d | e | f | g |",
        "| `disk-full` | a | b | c | d |",
    ]
    .map(str::to_owned);
    let again = page::with_rows(&page, &rows, &new);
    assert!(new.iter().all(|row| again.contains(&format!("\n{row}\n"))), "{again}");
    assert_eq!(again.lines().count(), page.lines().count());
}

#[test]
fn faults_of_the_process() {
    for row in PROCESS_ROWS.iter().filter(|row| !row.is_long) {
        for seed in [3, 9] {
            if let Err(wrong) = row.run(Path::new(PROGRAM), seed) {
                panic!("{wrong}");
            }
        }
    }
}

/// Three deployments here, twenty by `cargo run --example soak -- --redeploy 10`.
#[test]
fn nobody_is_refused_while_the_service_is_deployed_anew() {
    survives_as_process("redeploy");
}

/// One instance here, more by `cargo run --example soak -- --replace 5`.
#[test]
fn everything_is_back_soon_after_a_group_has_a_new_bastion() {
    survives_as_process("replace-instance");
}

#[track_caller]
fn survives_as_process(name: &str) {
    let row = PROCESS_ROWS.iter().find(|row| row.name == name).expect("the row is there");
    if let Err(wrong) = row.run(Path::new(PROGRAM), 1) {
        panic!("{wrong}");
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
