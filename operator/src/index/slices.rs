//! EndpointSlices: who stands behind Services. Addresses and ports are all that is kept of them.

use std::net::IpAddr;

use crds::plan::ObjectRef;
use k8s_openapi::api::discovery::v1;

use super::{Index, Indexed, Kind, Objects, Touched};

/// The label that says whose a slice is.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// An EndpointSlice.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Slice {
    /// Name of its Service, which is of the same namespace.
    pub service: String,
    /// Its TCP ports, by the names that they have in the Service.
    pub ports: Box<[(String, u16)]>,
    /// Endpoints that are ready, in ascending order.
    pub ready: Box<[IpAddr]>,
    /// Endpoints that are about to end and still serve, likewise.
    pub ending: Box<[IpAddr]>,
}

impl Indexed for Slice {
    type Resource = v1::EndpointSlice;
    const KIND: Kind = Kind::EndpointSlices;

    fn read(object: v1::EndpointSlice) -> Option<(ObjectRef, Self)> {
        let key = ObjectRef::new(object.metadata.namespace?, object.metadata.name?);
        let service = object.metadata.labels.unwrap_or_default().remove(SERVICE_NAME).unwrap_or_default();
        let mut slice = Self { service, ports: object.ports.into_iter().flatten().filter_map(port).collect(), ..Self::default() };
        let (mut ready, mut ending) = (Vec::new(), Vec::new());
        for endpoint in object.endpoints {
            // All addresses of an endpoint are one; consumers take the first. One of type FQDN has none.
            let Some(Ok(ip)) = endpoint.addresses.first().map(|address| address.parse()) else { continue };
            let conditions = endpoint.conditions.unwrap_or_default();
            // What is not said counts as ready, as serving and as staying.
            if conditions.ready.unwrap_or(true) {
                ready.push(ip);
            } else if conditions.terminating == Some(true) && conditions.serving.unwrap_or(true) {
                ending.push(ip);
            }
        }
        // Sorted, so that another order is no change.
        ready.sort_unstable();
        ending.sort_unstable();
        (slice.ready, slice.ending) = (ready.into(), ending.into());
        Some((key, slice))
    }

    fn objects(index: &mut Index) -> &mut Objects<Self> {
        &mut index.slices
    }

    fn touched(old: Option<&Self>, new: Option<&Self>) -> Touched {
        Touched { services: old != new, ..Touched::NOTHING }
    }
}

/// A port without a number stands for all of them, which no Service has; 0 is none, although the API takes it.
fn port(port: v1::EndpointPort) -> Option<(String, u16)> {
    let is_tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    Some((port.name.unwrap_or_default(), u16::try_from(port.port?).ok().filter(|number| is_tcp && *number != 0)?))
}
