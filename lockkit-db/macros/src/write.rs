//! The implementations. All names are whole paths, so that nothing in the user's scope can stand for them; and what
//! is named here begins with `__`, as the name of a constant or of a unit struct in that scope would be a pattern.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{DeriveInput, GenericParam, parse_quote, parse_quote_spanned};

use crate::describe::{Column, Description};

pub(crate) fn implementations(input: &DeriveInput, description: &Description) -> TokenStream {
    let Description {
        table,
        keys,
        values,
        version,
        timestamp,
    } = description;
    let name = &input.ident;
    let (_, types, _) = input.generics.split_for_impl();
    let generics = generics(input, description);
    let (parameters, _, bounds) = generics.split_for_impl();
    let head = quote!(#[automatically_derived] impl #parameters);
    let outcome = quote!(::core::result::Result);
    let arguments = quote!(__values: &mut ::lockkit_db::cas::Values<__DB>);

    let push = |columns: &[Column]| -> Vec<_> {
        let fields = columns.iter().map(|column| column.field);
        fields
            .map(|field| quote!(__values.push(&self.#field)?;))
            .collect()
    };
    let (push_keys, push_values) = (push(keys), push(values));
    // The value columns, the version, the key: as `Record` has them.
    let get = |columns: &[Column], first: usize| -> Vec<_> {
        let numbered = columns.iter().zip(first..);
        let get = |(column, at): (&Column, usize)| {
            let field = column.field;
            quote!(#field: ::lockkit_db::made::column::<__DB, _>(__row, #at)?)
        };
        numbered.map(get).collect()
    };
    let at = values.len();
    let (get_values, get_keys) = (get(values, 0), get(keys, at + 1));
    let names = |columns: &[Column]| -> Vec<_> {
        columns.iter().map(|column| column.name.clone()).collect()
    };
    let (key_names, value_names) = (names(keys), names(values));
    let version_name = &version.name;
    let version_field = version.field;
    // Names the type, so that another one by the name of `Version` is an error here.
    let version_type = version.kind;
    let written = quote_spanned! {version_type.span()=>
        <#version_type as ::core::convert::From<::lockkit_db::cas::Version>>::from
    };
    let expected = quote_spanned! {version_type.span()=>
        <::lockkit_db::cas::Version as ::core::convert::From<#version_type>>::from
    };

    quote! {
        #head ::lockkit_db::cas::Bind<__DB> for #name #types #bounds {
            fn bind(&self, #arguments) -> #outcome<(), ::lockkit_db::Error> {
                #(#push_values)*
                #outcome::Ok(())
            }
        }

        #head ::lockkit_db::cas::Record<__DB> for #name #types #bounds {
            fn read(
                __row: &<__DB as ::lockkit_db::sqlx::Database>::Row,
            ) -> #outcome<Self, ::lockkit_db::sqlx::Error> {
                #outcome::Ok(Self {
                    #(#get_values,)*
                    #version_field: #written(::lockkit_db::made::version::<__DB>(__row, #at)?),
                    #(#get_keys,)*
                })
            }

            fn written(&mut self, __version: ::lockkit_db::cas::Version) {
                self.#version_field = #written(__version);
            }
        }

        #head ::lockkit_db::Versioned<__DB> for #name #types #bounds {
            fn table() -> &'static ::lockkit_db::cas::Table<__DB> {
                static __TABLES: ::lockkit_db::made::Tables = ::lockkit_db::made::Tables::new();
                __TABLES.table(
                    #table,
                    &[#(#key_names),*],
                    &[#(#value_names),*],
                    #version_name,
                    #timestamp,
                )
            }

            fn bind_key(&self, #arguments) -> #outcome<(), ::lockkit_db::Error> {
                #(#push_keys)*
                #outcome::Ok(())
            }

            fn expected(&self) -> ::lockkit_db::cas::Version {
                #expected(self.#version_field)
            }
        }
    }
}

/// The struct's own parameters and the database, with what each column has to be there.
fn generics(input: &DeriveInput, description: &Description) -> syn::Generics {
    let mut generics = input.generics.clone();
    let types = generics.type_params().next().is_some();
    // Types and constants may come in any order; a default may not be repeated here.
    let database: GenericParam = parse_quote!(__DB: ::lockkit_db::transaction::Backend);
    generics.params.push(database);
    let bounds = generics.make_where_clause();
    for column in description.keys.iter().chain(&description.values) {
        let kind = column.kind;
        // An error about it points at the field.
        bounds.predicates.push(parse_quote_spanned! {kind.span()=>
            #kind: for<'__q> ::lockkit_db::sqlx::Encode<'__q, __DB>
                + for<'__r> ::lockkit_db::sqlx::Decode<'__r, __DB>
                + ::lockkit_db::sqlx::Type<__DB>
        });
    }
    if types {
        bounds.predicates.push(parse_quote!(
            Self: ::core::marker::Send + ::core::marker::Sync
        ));
    }
    generics
}
