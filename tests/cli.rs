//! What the binary says of itself: completions for shells, and its manual.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn podgate(arguments: &[&str]) -> Output {
    let mut podgate = Command::new(env!("CARGO_BIN_EXE_podgate"));
    podgate.args(arguments).output().expect("it runs")
}

#[test]
fn commands_can_be_completed_in_the_shells_there_are() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = podgate(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        for word in ["serve", "check", "emulate", "demo", "health", "--config"] {
            assert!(
                script.contains(word.trim_start_matches("--")),
                "{shell}: {word}"
            );
        }
    }
    assert_eq!(podgate(&["completions", "none"]).status.code(), Some(2));
}

#[test]
fn bash_reads_what_it_is_given() {
    let script = podgate(&["completions", "bash"]).stdout;
    let script = String::from_utf8(script).unwrap();
    let asks = format!(
        "{script}\nCOMP_WORDS=(podgate se) COMP_CWORD=1\n_podgate podgate se podgate\n\
         echo \"${{COMPREPLY[@]}}\""
    );
    let output = Command::new("bash").args(["-c", &asks]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "serve\n");
}

#[test]
fn every_command_has_its_page_in_the_manual() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("man");
    let _ = fs::remove_dir_all(&folder);
    let missing = podgate(&["man", folder.to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(1));
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(said.contains(folder.to_str().unwrap()), "{said}");
    fs::create_dir_all(&folder).unwrap();
    assert!(podgate(&["man", folder.to_str().unwrap()]).status.success());
    let serve = fs::read_to_string(folder.join("podgate-serve.1")).unwrap();
    let serve = serve.replace('\\', "");
    assert!(serve.contains("PODGATE_CONFIG"), "{serve}");
    for page in [
        "podgate",
        "podgate-check",
        "podgate-emulate",
        "podgate-demo",
    ] {
        assert!(folder.join(format!("{page}.1")).exists(), "{page}");
    }
}
