//! The derive macros of `lockkit-db`, which re-exports them and says what they do. Depend on that crate, with its
//! feature `derive`; what is written here calls it by its own name.
//!
//! | file | holds |
//! |---|---|
//! | `lib.rs` | the macros |
//! | `describe.rs` | what a struct says about its table, and whether that can be |
//! | `names.rs` | which names may be in a statement |
//! | `write.rs` | the implementations |

mod describe;
mod names;
mod write;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Implements `lockkit_db::Versioned` for a struct that is a row.
#[proc_macro_derive(Versioned, attributes(versioned))]
pub fn versioned(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    let written = match describe::Description::of(&input) {
        Ok(description) => write::implementations(&input, &description),
        Err(error) => error.into_compile_error(),
    };
    written.into()
}
