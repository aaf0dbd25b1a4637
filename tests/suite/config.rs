//! Configuration files and what is said about them; the documentation of the keys; `check`.
//!
//! Each `tests/data/config/NAME.toml` has a `NAME.expected` with the whole report.  After a change
//! of wording, run with `MAILRACE_BLESS=1` and read the difference.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mailrace::config::{Config, Environment, SECTIONS};

fn environment() -> Environment {
    Environment {
        host_name: "build7".to_owned(),
        cores: 2,
        descriptors: 1_024,
        directory: PathBuf::from("/srv"),
        user_exists: |name| name == "mailrace",
    }
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What a person sees: all problems, then whether the file is taken.
fn told(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("the file is there");
    let name = Path::new(file.file_name().expect("it has a name"));
    match Config::parse(&text, name, &environment()) {
        Ok(checked) => checked.report.render(false) + "taken\n",
        Err(report) => report.render(false) + "refused\n",
    }
}

#[test]
fn every_file_is_told_what_is_expected() {
    let mut files: Vec<PathBuf> = fs::read_dir(project("tests/data/config"))
        .expect("the directory is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 15, "only {} files", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let told = told(&file);
        let expected_file = file.with_extension("expected");
        if std::env::var_os("MAILRACE_BLESS").is_some() {
            fs::write(&expected_file, &told).expect("it can be written");
        }
        let expected = fs::read_to_string(&expected_file).unwrap_or_default();
        if told != expected {
            wrong.push(format!("{}:\n{told}--- expected ---\n{expected}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_documentation_names_every_key() {
    let page = fs::read_to_string(project("docs/configuration.md")).expect("the page is there");
    for section in SECTIONS {
        let start = match section.name {
            "" => page.find("## The top of the file").expect("it is described"),
            _ => {
                let header = format!("\n## {}", section.header());
                page.find(&header).unwrap_or_else(|| panic!("no heading{header}"))
            }
        };
        let text = &page[start + 1..];
        let text = &text[..text.find("\n## ").unwrap_or(text.len())];
        for key in section.keys {
            let named = format!("`{key}`");
            assert!(text.contains(&named), "{} does not describe {named}", section.header());
        }
    }
}

/// Of the keys that this version takes, the example shows each: nothing is left to guess.
#[test]
fn the_example_is_complete_and_taken() {
    let file = project("docs/mailrace.toml");
    let text = fs::read_to_string(&file).expect("the example is there");
    let checked = Config::parse(&text, &file, &environment()).unwrap_or_else(|report| {
        panic!("{}", report.render(false));
    });
    assert_eq!(checked.report.render(false), "");
    for section in SECTIONS {
        for key in section.keys {
            assert!(text.contains(key), "the example does not show {key} of {}", section.header());
        }
    }
}

/// The recipe for the edge filter is a whole file, and explains every check.
#[test]
fn the_recipe_for_the_edge_is_taken() {
    let page = fs::read_to_string(project("docs/edge.md")).expect("the page is there");
    let recipe = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let recipe = recipe.expect("a file in it");
    // Also with the list that it leaves to the reader.
    let uncommented = recipe.replace("\n# [[", "\n[[").replace("\n# zone", "\nzone");
    let uncommented = uncommented.replace("\n# codes", "\ncodes").replace("\n# weight", "\nweight");
    assert_ne!(recipe, uncommented);
    for text in [recipe, &uncommented] {
        let checked = Config::parse(text, Path::new("/etc/mailrace/mailrace.toml"), &environment());
        let checked = checked.unwrap_or_else(|report| panic!("{}", report.render(false)));
        assert_eq!(checked.report.render(false), "");
    }
    let checks = SECTIONS.iter().find(|section| section.name == "edge.checks");
    for check in checks.expect("the section").keys {
        assert!(page.contains(&format!("`{check}`")), "the page does not explain {check}");
    }
}

fn mailrace(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_mailrace");
    Command::new(program).args(arguments).output().expect("the program starts")
}

fn text(octets: &[u8]) -> String {
    String::from_utf8(octets.to_vec()).expect("it is UTF-8")
}

#[test]
fn check_says_ok_and_what_it_comes_to() {
    let file = project("docs/mailrace.toml");
    let output = mailrace(&["check", "--config", file.to_str().expect("a plain path")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let told = text(&output.stdout);
    assert!(told.starts_with("ok\n"), "{told}");
    assert!(told.contains("listener  0.0.0.0:25 mx, fsync, tls off\n"), "{told}");
}

#[test]
fn check_of_a_bad_file_exits_with_1_and_shows_every_error() {
    let file = project("tests/data/config/misspelt_keys.toml");
    let output = mailrace(&["check", "--config", file.to_str().expect("a plain path")]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let told = text(&output.stderr);
    assert!(told.contains("did you mean `sessions_per_address`?"), "{told}");
    assert!(told.ends_with("mailrace: 6 errors\n"), "{told}");
    // Not a terminal, so no escapes.
    assert!(!told.contains('\x1b'));
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_told_in_a_line() {
    let output = mailrace(&["check", "--config", "/nowhere/mailrace.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(
        told.starts_with("mailrace: cannot read the configuration /nowhere/mailrace.toml: No such")
    );
    assert_eq!(told.lines().count(), 1);

    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("bad.toml");
    fs::write(&file, b"hostname = \"a.b\"\n\n# \xff\n").expect("it can be written");
    let output = mailrace(&["check", "--config", file.to_str().expect("a plain path")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("is not UTF-8 from line 3 on"));
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    for arguments in [&["chekc"][..], &["check"], &["queue", "delete"], &["run", "--confg", "a"]] {
        let output = mailrace(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains("Usage: mailrace"), "{arguments:?}");
    }
    assert_eq!(mailrace(&["--version"]).status.code(), Some(0));
}
