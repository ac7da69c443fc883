//! Misuse is an error of the compiler that says what is wrong, and points at it.
//!
//! After a change of the words: `TRYBUILD=overwrite cargo test -p lockkit-db-macros --test misuse`, and read the
//! difference. All of the errors are the macro's own, so that they are the same with every compiler.

// Mutants: A180, A181, A182
#[test]
fn misuse_is_an_error_where_it_stands() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
