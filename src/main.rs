//! The `cutover` command.

fn main() -> std::process::ExitCode {
    cutover::cli::main()
}
