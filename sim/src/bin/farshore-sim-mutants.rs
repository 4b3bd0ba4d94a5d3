//! `farshore-sim` in a build that has deliberate defects in it: for the verb `mutants`.

#[path = "farshore-sim/main.rs"]
mod program;

fn main() -> std::process::ExitCode {
    program::main()
}
