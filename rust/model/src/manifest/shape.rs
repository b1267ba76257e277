//! Reading JSON of a wanted shape without stopping at the first surprise: a wrong type is a fault, its value is skipped, and reading goes on.
//! Only broken JSON ends it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::fault::Faults;
use crate::failure::Code;

/// The part of [`Faults`] that a shape needs to refuse a value, free of its lifetime.
pub(super) trait Report {
    fn wrong_type(&mut self, message: String);
    fn null_is_absent(&self) -> bool;
}

impl Report for Faults<'_> {
    fn wrong_type(&mut self, message: String) {
        self.add(Code::ValidationWrongType, message);
    }

    fn null_is_absent(&self) -> bool {
        self.null_is_absent
    }
}

/// What a value should be. Each method is one JSON type; those not overridden report a wrong type.
pub(super) trait Shape<'de>: Sized {
    /// What reading gives; the default stands for a value of the wrong type.
    type Out: Default;
    /// The wanted type, for messages.
    const WANTED: &'static str;

    /// Reports a value of the wrong type and whether null would do.
    fn reporter(&mut self) -> &mut dyn Report;

    fn text(self, _value: Cow<'de, str>) -> Self::Out {
        self.wrong("a string")
    }

    fn integer(self, _value: i64) -> Self::Out {
        self.wrong("a number")
    }

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Out, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self.wrong("an object"))
    }

    fn array<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Out, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self.wrong("an array"))
    }

    fn wrong(mut self, found: &str) -> Self::Out {
        let message = format!("{} is wanted here, not {found}", Self::WANTED);
        self.reporter().wrong_type(message);
        Self::Out::default()
    }
}

/// Reads a value of shape `S`.
pub(super) struct As<S>(pub S);

impl<'de, S: Shape<'de>> DeserializeSeed<'de> for As<S> {
    type Value = S::Out;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Out, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: Shape<'de>> Visitor<'de> for As<S> {
    type Value = S::Out;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(S::WANTED)
    }

    fn visit_bool<E>(self, _: bool) -> Result<S::Out, E> {
        Ok(self.0.wrong("a boolean"))
    }

    fn visit_i64<E>(self, value: i64) -> Result<S::Out, E> {
        Ok(self.0.integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<S::Out, E> {
        Ok(self.0.integer(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, _: f64) -> Result<S::Out, E> {
        Ok(self.0.wrong("a number with a fraction"))
    }

    fn visit_unit<E>(mut self) -> Result<S::Out, E> {
        if self.0.reporter().null_is_absent() { Ok(S::Out::default()) } else { Ok(self.0.wrong("null")) }
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<S::Out, E> {
        Ok(self.0.text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<S::Out, E> {
        Ok(self.0.text(Cow::Owned(value.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<S::Out, A::Error> {
        self.0.object(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<S::Out, A::Error> {
        self.0.array(seq)
    }
}

/// Any string.
pub(super) struct Text<'c, 'l>(pub &'c mut Faults<'l>);

impl<'de> Shape<'de> for Text<'_, '_> {
    type Out = Option<Cow<'de, str>>;
    const WANTED: &'static str = "a string";

    fn reporter(&mut self) -> &mut dyn Report {
        self.0
    }

    fn text(self, value: Cow<'de, str>) -> Self::Out {
        Some(value)
    }
}

/// An object of strings, in the order they stand there.
pub(super) struct TextMap<'c, 'l>(pub &'c mut Faults<'l>);

/// Pairs of strings.
pub(super) type Pairs<'de> = Vec<(Cow<'de, str>, Cow<'de, str>)>;

impl<'de> Shape<'de> for TextMap<'_, '_> {
    type Out = Pairs<'de>;
    const WANTED: &'static str = "an object of strings";

    fn reporter(&mut self) -> &mut dyn Report {
        self.0
    }

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Out, A::Error> {
        let faults = self.0;
        let mut pairs = Vec::new();
        let mut seen = Seen::default();
        while let Some(name) = next_name(&mut map, faults)? {
            faults.enter_named(&name);
            let fresh = seen.check(&name, faults);
            if let Some(value) = map.next_value_seed(As(Text(faults)))?.filter(|_| fresh) {
                pairs.push((name, value));
            }
            faults.leave();
        }
        Ok(pairs)
    }
}

/// An array of strings.
pub(super) struct TextList<'c, 'l>(pub &'c mut Faults<'l>);

impl<'de> Shape<'de> for TextList<'_, '_> {
    type Out = Vec<Cow<'de, str>>;
    const WANTED: &'static str = "an array of strings";

    fn reporter(&mut self) -> &mut dyn Report {
        self.0
    }

    fn array<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Out, A::Error> {
        let faults = self.0;
        let mut list = Vec::new();
        for index in 0.. {
            faults.enter_index(index);
            let Some(item) = seq.next_element_seed(As(Text(faults)))? else { break };
            list.extend(item);
            faults.leave();
        }
        faults.leave();
        Ok(list)
    }
}

/// Any value at all: only looks for what no document may hold, a name given twice or text that is not Unicode.
pub(super) struct Walk<'c, 'l>(pub &'c mut Faults<'l>);

impl<'de> DeserializeSeed<'de> for Walk<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let faults = self.0;
        let mut seen = Seen::default();
        while let Some(name) = next_name(&mut map, faults)? {
            faults.enter_named(&name);
            seen.check(&name, faults);
            map.next_value_seed(Walk(faults))?;
            faults.leave();
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let faults = self.0;
        for index in 0.. {
            faults.enter_index(index);
            if seq.next_element_seed(Walk(faults))?.is_none() {
                break;
            }
            faults.leave();
        }
        faults.leave();
        Ok(())
    }
}

/// The names an object has given so far.
#[derive(Default)]
pub(super) struct Seen<'de> {
    few: Vec<Cow<'de, str>>,
    many: HashSet<Cow<'de, str>>,
}

/// Up to here comparing with every name is cheaper than hashing.
const FEW_NAMES: usize = 12;

impl<'de> Seen<'de> {
    /// Reports a name that was given before, at the place being read. True when it is new.
    #[expect(clippy::ptr_arg, reason = "a borrowed name is kept without copying its text")]
    pub fn check(&mut self, name: &Cow<'de, str>, faults: &mut Faults<'_>) -> bool {
        let fresh = if self.few.contains(name) {
            false
        } else if self.few.len() < FEW_NAMES {
            self.few.push(name.clone());
            true
        } else {
            self.many.insert(name.clone())
        };
        if !fresh {
            faults.add(Code::ValidationDuplicateKey, "this name stands twice in its object");
        }
        fresh
    }
}

/// The next member's name; an error when enough faults were found.
pub(super) fn next_name<'de, A: MapAccess<'de>>(map: &mut A, faults: &Faults<'_>) -> Result<Option<Cow<'de, str>>, A::Error> {
    if faults.is_full() {
        return Err(A::Error::custom("enough faults"));
    }
    map.next_key_seed(Name)
}

struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(value.to_owned()))
    }
}
