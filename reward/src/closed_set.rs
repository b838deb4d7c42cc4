//! Closed sets of names, as they stand in settings, flags and messages.

/// Declares an enum whose variants have names: all of them, reading, writing, and a message that lists them.
///
/// ```
/// reward::closed_set! {
///     /// What trains.
///     pub enum Train: "choice of weights" {
///         /// Adapters over frozen weights.
///         Lora = "lora",
///         /// Every weight.
///         Full = "full",
///     }
/// }
/// assert_eq!("full".parse::<Train>().unwrap(), Train::Full);
/// let error = "ful".parse::<Train>().unwrap_err();
/// assert_eq!(error.to_string(), "unknown choice of weights `ful`, expected `lora`, `full`");
/// assert_eq!(error.hint_text(), Some("did you mean `full`?"));
/// ```
#[macro_export]
macro_rules! closed_set {
    ($(#[$meta:meta])* $vis:vis enum $name:ident: $what:literal {
        $($(#[$doc:meta])* $variant:ident = $text:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// All of them, in the order in which users see them.
            pub const ALL: [Self; [$($text),+].len()] = [$(Self::$variant),+];
            /// The names of all of them.
            pub const NAMES: [&'static str; Self::ALL.len()] = [$($text),+];

            /// The name in settings and files.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                formatter.write_str(self.as_str())
            }
        }

        impl ::std::str::FromStr for $name {
            type Err = $crate::Error;

            fn from_str(text: &str) -> $crate::Result<Self> {
                Self::ALL.into_iter().find(|known| known.as_str() == text).ok_or_else(|| {
                    $crate::error::unknown_name($what, text, &Self::NAMES)
                })
            }
        }

        impl $crate::serde::Serialize for $name {
            fn serialize<S: $crate::serde::Serializer>(&self, serializer: S) -> ::std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> $crate::serde::Deserialize<'de> for $name {
            fn deserialize<D: $crate::serde::Deserializer<'de>>(deserializer: D) -> ::std::result::Result<Self, D::Error> {
                let text = <::std::string::String as $crate::serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(|_| $crate::serde::de::Error::unknown_variant(&text, &Self::NAMES))
            }
        }
    };
}
