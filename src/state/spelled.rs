//! States that are stored and shown as texts: one spelling for each.

/// Makes an enum of which every variant has one spelling, in the state's tables, in JSON, and where people read it.
macro_rules! spelled {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $what:literal { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$doc])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// How it is spelled.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }

            /// The one that is spelled so.
            ///
            /// # Errors
            /// When this release knows none.
            pub fn read(text: &str) -> Result<Self, $crate::state::StateError> {
                match text {
                    $($text => Ok($name::$variant),)+
                    other => Err($crate::state::StateError::Unreadable(format!(
                        concat!("this release knows no ", $what, " `{}`; use a newer one"), other
                    ))),
                }
            }
        }
    };
}

pub(super) use spelled;

#[cfg(test)]
mod tests {
    use crate::state::requests::Command;

    #[test]
    fn a_state_has_one_spelling_everywhere() {
        let command = Command::RetryDeadLetters;
        assert_eq!(command.name(), "dlq retry");
        assert_eq!(Command::read("dlq retry").expect("it is known"), command);
        assert_eq!(serde_json::to_string(&command).expect("it is a text"), "\"dlq retry\"");
        let error = Command::read("dlq mend").expect_err("no release knows it");
        assert_eq!(error.to_string(), "this release knows no request `dlq mend`; use a newer one");
    }
}
