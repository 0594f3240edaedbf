//! The properties that are fuzzed (`tests/fuzz/run`), over the seeds.

#[path = "fuzz/properties.rs"]
mod properties;

use std::path::Path;

fn replay(seeds: &str, ending: &str, property: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(seeds);
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the seeds") {
        let path = entry.expect("an entry").path();
        if path.to_string_lossy().ends_with(ending) {
            // What a failing test shows last is what failed.
            println!("{}", path.display());
            property(&std::fs::read(path).expect("a seed"));
            count += 1;
        }
    }
    assert!(count >= 10, "only {count} seeds");
}

#[test]
fn no_spelling_of_a_target_hides_an_operation() {
    replay("tests/fuzz/seeds/classifier", "", properties::classifier);
}

#[test]
fn fields_pass_that_may_and_no_others() {
    replay("tests/fuzz/seeds/fields", "", properties::fields);
}

#[test]
fn a_configuration_is_read_back_or_its_faults_have_places() {
    replay("tests/fuzz/seeds/config", "", properties::config);
    replay("tests/config", ".yaml", properties::config);
}

#[test]
fn heads_are_judged_alike_in_whatever_pieces_they_come() {
    replay("tests/fuzz/seeds/framing", "", properties::framing);
}

#[test]
fn an_answer_is_read_as_hyper_reads_it_or_refused() {
    replay("tests/fuzz/seeds/answers", "", properties::answers);
}
