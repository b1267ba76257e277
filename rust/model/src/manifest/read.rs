//! The manifest's outermost object.

use serde::de::{DeserializeSeed, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::attributes::{Attributes, AttributesShape};
use super::fault::{Faults, add_json_error};
use super::resource::Resources;
use super::shape::{As, Report, Seen, Shape, Text, Walk, next_name};
use super::{Json, Manifest, VERSION, check_unique};
use crate::failure::Code;

pub(super) struct Top<'c, 'l, 'a> {
    pub faults: &'c mut Faults<'l>,
    /// The whole body, to place values in it.
    pub body: &'a [u8],
}

impl<'de> Shape<'de> for Top<'_, '_, 'de> {
    type Out = Option<Manifest<'de>>;
    const WANTED: &'static str = "an object";

    fn reporter(&mut self) -> &mut dyn Report {
        self.faults
    }

    fn object<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Out, A::Error> {
        let Self { faults, body } = self;
        let mut seen = Seen::default();
        let (mut version, mut metadata, mut resources, mut attributes) = (false, None, None, None);
        while let Some(name) = next_name(&mut map, faults)? {
            match &*name {
                "manifest_version" => faults.enter("manifest_version"),
                "metadata" => faults.enter("metadata"),
                "resources" => faults.enter("resources"),
                "attributes" => faults.enter("attributes"),
                _ => faults.enter_named(&name),
            }
            let fresh = seen.check(&name, faults);
            match &*name {
                "manifest_version" if fresh => {
                    version = true;
                    match map.next_value_seed(As(Text(faults)))? {
                        Some(given) if given == VERSION => {}
                        Some(_) => faults.add(Code::ValidationUnsupportedVersion, "the only version there is is \"v1\""),
                        None => {}
                    }
                }
                "metadata" if fresh => {
                    metadata = Some(read_raw(map.next_value()?, body, faults, |faults, de| As(AnyObject(faults)).deserialize(de)));
                }
                "resources" if fresh => {
                    let list = map.next_value_seed(As(Resources { faults, for_handler: false, job_id: "" }))?;
                    if let Some(list) = &list {
                        check_unique(list, faults);
                    }
                    resources = Some(list);
                }
                "attributes" if fresh => {
                    attributes = read_raw(map.next_value()?, body, faults, |faults, de| As(AttributesShape(faults)).deserialize(de));
                }
                _ => map.next_value_seed(Walk(faults))?,
            }
            faults.leave();
        }
        for (name, there) in [("manifest_version", version), ("metadata", metadata.is_some()), ("resources", resources.is_some())] {
            if !there {
                faults.add_below(name, Code::ValidationMissing, "a manifest has this field");
            }
        }
        let manifest = metadata.flatten().zip(resources.flatten());
        Ok(manifest.map(|((metadata, _), resources)| Manifest {
            metadata,
            resources,
            attributes: attributes.map(|(raw, read)| Attributes { raw: Some(raw), ..read }).unwrap_or_default(),
        }))
    }
}

/// An object of which only the form matters.
struct AnyObject<'c, 'l>(&'c mut Faults<'l>);

impl<'de> Shape<'de> for AnyObject<'_, '_> {
    type Out = ();
    const WANTED: &'static str = "an object";

    fn reporter(&mut self) -> &mut dyn Report {
        self.0
    }

    fn object<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Visitor::visit_map(Walk(self.0), map)
    }
}

/// Reads a value that is kept as it was sent. What breaks in it (text that is not Unicode, nesting) does not keep the rest from being read.
fn read_raw<'de, T>(
    raw: &'de RawValue,
    body: &[u8],
    faults: &mut Faults<'_>,
    read: impl FnOnce(&mut Faults<'_>, &mut Json<'de>) -> serde_json::Result<T>,
) -> Option<(&'de RawValue, T)> {
    let depth = faults.depth();
    match read(faults, &mut serde_json::Deserializer::from_str(raw.get())) {
        Ok(value) => Some((raw, value)),
        Err(error) => {
            let base = raw.get().as_ptr().addr().saturating_sub(body.as_ptr().addr());
            add_json_error(faults, raw.get(), base, &error);
            faults.rise_to(depth);
            None
        }
    }
}
