use std::time::{Duration, SystemTime};

use super::{
    keys::Key,
    model::{Act, Event, Progress, SAMPLES, Screen},
    view::{self, Size},
};
use crate::{
    cli::{output::Paint, status::tests::status},
    doctor::{Entry, Status},
    util::written::{Timestamp, read_rfc3339},
};

fn at(text: &str) -> SystemTime {
    read_rfc3339(text).unwrap()
}

fn now() -> SystemTime {
    at("2026-11-22T03:04:05Z")
}

fn picture(screen: &Screen, width: usize, height: usize) -> String {
    let lines = view::draw(screen, Size { width, height }, now(), Paint::plain());
    assert!(lines.len() <= height && lines.iter().all(|line| line.chars().count() <= width), "{lines:#?}");
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn entry(title: &str, status: Status, fixes: &[&str]) -> Entry {
    Entry {
        id: title.to_owned(),
        title: title.to_owned(),
        status,
        region: None,
        cluster: Some("payments".to_owned()),
        target: None,
        tried: "GET /livez".to_owned(),
        answer: Some("it answers 200".to_owned()),
        meaning: Some("it means something that takes more words than one line of a narrow terminal has".to_owned()),
        fixes: fixes.iter().map(|fix| (*fix).to_owned()).collect(),
        duration_ms: 1,
    }
}

fn said(screen: &Screen) -> Vec<&str> {
    screen.events.iter().map(|event| &*event.text).collect()
}

/// A screen that has seen something happen.
fn busy() -> Screen {
    let mut screen = Screen::new(status());
    for step in 1..=40_u64 {
        let mut next = screen.status.clone();
        next.tunnels[0].bytes_received += step * 1000;
        screen.tell(next, now());
        screen.sample(Duration::from_secs(1));
    }
    screen
}

#[test]
fn fits_on_80_columns() {
    insta::assert_snapshot!(picture(&busy(), 79, 24));
}

#[test]
fn has_more_to_show_on_a_large_screen() {
    insta::assert_snapshot!(picture(&busy(), 131, 30));
}

#[test]
fn fits_into_any_room() {
    let mut screen = busy();
    for examined in [false, true] {
        if examined {
            screen.press(Key::Char('d'));
            screen.found(entry("API answers", Status::Failed, &["`do this`"]));
        }
        for width in [1, 10, 39, 79, 300] {
            for height in [1, 2, 5, 9, 24, 100] {
                picture(&screen, width, height);
            }
        }
    }
}

#[test]
fn shows_what_doctor_finds_for_a_row() {
    let mut screen = busy();
    assert_eq!(screen.press(Key::Down), None);
    assert_eq!(screen.press(Key::Up), None);
    assert_eq!(screen.press(Key::Char('d')), Some(Act::Examine("payments".to_owned())));
    screen.found(entry("credentials", Status::Ok, &[]));
    screen.found(entry(
        "API answers",
        Status::Failed,
        &["`aws eks describe-cluster --name payments --region us-east-1`"],
    ));
    let running = picture(&screen, 79, 30);
    assert!(running.contains("DOCTOR pa-payments: checks…"), "{running}");
    screen.examined(Progress::Done);
    insta::assert_snapshot!(picture(&screen, 79, 30));
    assert_eq!(screen.press(Key::Escape), Some(Act::Leave));
    assert!(picture(&screen, 79, 30).contains("EVENTS"));
    assert_eq!(screen.press(Key::Escape), None);
    // What comes late is of no interest.
    screen.found(entry("late", Status::Ok, &[]));
    assert!(screen.examination.is_none());
}

#[test]
fn keys_select_copy_and_quit() {
    let mut screen = Screen::new(status());
    let last = screen.status.tunnels.len() - 1;
    for (key, row) in [
        (Key::Up, 0),
        (Key::Char('j'), 1),
        (Key::End, last),
        (Key::Down, last),
        (Key::PageUp, 0),
        (Key::PageDown, last),
        (Key::Char('g'), 0),
        (Key::Char('x'), 0),
    ] {
        assert_eq!(screen.press(key), None);
        assert_eq!(screen.index(), Some(row), "{key:?}");
    }
    assert_eq!(screen.press(Key::Char('c')), Some(Act::Copy("pa-payments".to_owned())));
    assert!(picture(&screen, 79, 24).contains("`pa-payments` is in the clipboard"));
    screen.press(Key::Up);
    assert!(picture(&screen, 79, 24).contains("q quit"));
    assert_eq!(screen.press(Key::Char('q')), Some(Act::Quit));

    // A forward has no context.
    let mut forward = status();
    forward.tunnels[0].forward = Some("db.internal:5432".to_owned());
    assert_eq!(Screen::new(forward).press(Key::Char('c')), Some(Act::Copy("127.0.0.1:10100".to_owned())));
    // And where there is nothing, nothing happens.
    let mut empty = status();
    empty.tunnels.clear();
    let mut screen = Screen::new(empty);
    for key in [Key::Char('c'), Key::Char('d'), Key::Down, Key::End] {
        assert_eq!(screen.press(key), None);
    }
    picture(&screen, 79, 24);
}

#[test]
fn the_selection_stays_with_its_tunnel() {
    let mut screen = Screen::new(status());
    screen.press(Key::Down);
    let name = screen.selected().unwrap().context.clone();
    let mut next = status();
    next.tunnels.remove(0);
    screen.tell(next, now());
    assert_eq!((screen.index(), &*screen.selected().unwrap().context), (Some(0), &*name));
    let mut none = status();
    none.tunnels.truncate(1);
    screen.tell(none, now());
    assert_eq!(screen.index(), Some(0), "another is selected when it has gone");
}

#[test]
fn changes_become_events() {
    let mut screen = Screen::new(status());
    let before = screen.events.len();
    let mut next = status();
    next.state = "active".to_owned();
    let tunnel = &mut next.tunnels[0];
    (tunnel.state, tunnel.resumes, tunnel.restarts) = ("reconnecting".to_owned(), 3, 2);
    tunnel.last_error = Some("the bastion is gone".to_owned());
    tunnel.last_error_at = Some(Timestamp::from(now()));
    let mut new = next.tunnels[0].clone();
    (new.context, new.state) = ("pa-new".to_owned(), "starting".to_owned());
    next.tunnels.push(new);
    let closed = next.tunnels.remove(1).context;
    screen.tell(next.clone(), now());
    let new = &said(&screen)[before..];
    assert_eq!(
        new,
        [
            "the manager is active",
            "pa-payments: the bastion is gone",
            "pa-payments: resumed, open connections go on",
            "pa-payments: another session takes the place of the one that ended",
            "pa-payments is reconnecting",
            "pa-new is new, starting",
            &format!("{closed} is closed"),
        ]
    );
    // Nothing has happened since.
    screen.tell(next, now());
    assert_eq!(screen.events.len(), before + 7);
}

#[test]
fn neither_events_nor_traffic_pile_up() {
    let mut screen = Screen::new(status());
    for turn in 0..1000_u64 {
        let mut next = screen.status.clone();
        next.tunnels[0].resumes += 1;
        next.tunnels[0].bytes_sent += turn;
        screen.tell(next, now());
        screen.sample(Duration::from_secs(1));
    }
    assert!(screen.events.len() <= 200, "{}", screen.events.len());
    assert_eq!(screen.rates("pa-payments").len(), SAMPLES);
    assert_eq!(screen.rates("pa-payments").next_back(), Some(999));
}

#[test]
fn what_is_longer_than_a_line_is_shown_whole() {
    let mut screen = Screen::new(status());
    screen.press(Key::Char('d'));
    let arn = format!("arn:aws:sts::123456789012:assumed-role/{}/ann", "r".repeat(64));
    screen.found(Entry { answer: Some(arn.clone()), ..entry("identity", Status::Ok, &[]) });
    let text: String = picture(&screen, 60, 24).split_whitespace().collect();
    assert!(text.contains(&arn), "{text}");
}

/// Errors quote what peers have sent.
#[test]
fn nothing_commands_the_terminal() {
    let mut screen = Screen::new(status());
    screen.events.push_back(Event { at: now(), text: "\x1b[2J\x07\nevil\u{9b}31m".to_owned(), is_trouble: true });
    screen.status.tunnels[1].last_error = Some("\x1b]52;c;ZXZpbA==\x07".to_owned());
    screen.press(Key::Down);
    let text = picture(&screen, 79, 40);
    assert!(text.contains("[2Jevil"), "{text}");
    assert!(text.chars().all(|letter| letter == '\n' || !letter.is_control()), "{text:?}");
    let coloured = view::draw(&screen, Size { width: 79, height: 24 }, now(), Paint::coloured());
    assert!(coloured.concat().contains("\x1b[32mactive"), "{coloured:#?}");
}

#[test]
fn a_screen_on_which_nothing_happens_stays_as_it_is() {
    let screen = busy();
    let size = Size { width: 79, height: 24 };
    let later = now() + Duration::from_secs(20);
    let differences = view::draw(&screen, size, now(), Paint::plain())
        .into_iter()
        .zip(view::draw(&screen, size, later, Paint::plain()))
        .filter(|(one, other)| one != other)
        .count();
    assert!(differences <= 1, "only what is young gets older: {differences}");
}

#[test]
fn an_approval_that_is_waited_for_or_ends_soon_is_shown() {
    let mut screen = Screen::new(status());
    assert!(!picture(&screen, 150, 20).contains("access to"), "there is nothing to know yet");
    let approval = &mut screen.status.access[0].approvals[0];
    (approval.state, approval.until) = ("waiting".to_owned(), None);
    let said = "access to `i-0dc03fbcae2a87472`, request `oi-0123456789ab`: waiting for approval";
    assert!(picture(&screen, 150, 20).contains(said));
    let approval = &mut screen.status.access[0].approvals[0];
    (approval.state, approval.until) = ("approved".to_owned(), Some(Timestamp::from(now() + Duration::from_secs(60))));
    assert!(picture(&screen, 150, 20).contains("approved for another 1 min; after that open connections go on"));
}
