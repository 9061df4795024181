use super::*;

#[test]
fn c95_to_c97_the_command_is_handed_to_the_shell_as_it_is() {
    let text = "echo \"$HOME\" `id` \\\\ && exit 1";
    let v5 = process(Protocol::V5, text);
    assert_eq!(v5.command, ["bash", "-c", text]);
    assert!(v5.terminal);
    let v2 = process(Protocol::V2, text);
    assert_eq!(v2.command, ["sh", "-c", text]);
    assert!(!v2.terminal);
}

#[test]
fn c98_a_failure_tells_the_output_and_the_code_up_to_the_limit() {
    #[track_caller]
    fn check(text: &str, out_of_memory: bool, expected: &str) {
        assert_eq!(failure(text.into(), 1, out_of_memory), expected);
    }
    check("", false, "Build command exited with code 1.");
    check("no\r\n", false, "no\r\nBuild command exited with code 1.");
    check(
        "",
        true,
        "Build command exited with code 1.\nA process of it was killed by the memory limit.",
    );
    let long = failure("ä".repeat(LIMIT), 1, false);
    assert_eq!(long.len(), LIMIT);
    let odd = failure(format!("1{}", "ä".repeat(LIMIT)), 1, false);
    assert_eq!(odd.len(), LIMIT - 1);
}

#[test]
fn names_are_13_digits_and_never_the_same() {
    let names: Vec<_> = (0..1000).map(|_| unique()).collect();
    assert!(names.iter().all(|name| name.len() == 13));
    assert!(names.windows(2).all(|two| two[0] < two[1]));
}
