//! Tags of objects and buckets.

use std::collections::BTreeMap;
use std::sync::Arc;

use s3s::dto::*;
use s3s::{S3Error, S3Request, S3Response, S3Result, s3_error};

use super::buckets::existing;
use super::{error, refuse, versions};
use crate::gateway::Core;
use crate::meta::{BucketSetting, DeleteError, Found, Object, Versioning};

/// Tags of one object: S3's limit.
const OBJECT_TAGS_MAX: usize = 10;
/// Tags of one bucket: S3's limit.
const BUCKET_TAGS_MAX: usize = 50;
const NAME_CHARS_MAX: usize = 128;
const VALUE_CHARS_MAX: usize = 256;

type Pairs = Vec<(String, String)>;

/// The tags of `x-amz-tagging`, which is written like a query.
pub(super) fn of_header(header: Option<&str>) -> S3Result<Pairs> {
    let text = header.unwrap_or_default();
    let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text: &str| refuse::decoded(&text.replace('+', " "));
        (decode(name), decode(value))
    });
    checked(pairs, OBJECT_TAGS_MAX, |message| {
        s3_error!(
            InvalidArgument,
            "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name duplicates: {message}"
        )
    })
}

/// The tags of a form's field `tagging`, which is a document.
pub(super) fn of_field(text: &str) -> S3Result<Pairs> {
    use s3s::xml::{Deserialize, Deserializer};
    let mut document = Deserializer::new(text.as_bytes());
    let tagging = Tagging::deserialize(&mut document)
        .and_then(|tagging| document.expect_eof().map(|()| tagging))
        .map_err(|_| s3_error!(MalformedXML, "The field tagging is not a Tagging document"))?;
    of_document(tagging, OBJECT_TAGS_MAX)
}

fn of_document(tagging: Tagging, most: usize) -> S3Result<Pairs> {
    let pairs =
        tagging.tag_set.into_iter().map(|tag| (tag.key.unwrap_or_default(), tag.value.unwrap_or_default()));
    checked(pairs, most, |message| s3_error!(InvalidTag, "{message}"))
}

fn checked(
    pairs: impl Iterator<Item = (String, String)>,
    most: usize,
    refused: impl Fn(&str) -> S3Error,
) -> S3Result<Pairs> {
    let mut tags = BTreeMap::new();
    for (name, value) in pairs {
        if name.is_empty() || name.chars().count() > NAME_CHARS_MAX {
            return Err(refused("The TagKey you have provided is invalid"));
        }
        if value.chars().count() > VALUE_CHARS_MAX {
            return Err(refused("The TagValue you have provided is invalid"));
        }
        if name.starts_with("aws:") {
            return Err(refused("System tags cannot be added or updated by requester"));
        }
        if tags.insert(name, value).is_some() {
            return Err(refused("Cannot provide multiple Tags with the same key"));
        }
    }
    if tags.len() > most {
        return Err(error::custom(
            "BadRequest",
            http::StatusCode::BAD_REQUEST,
            format!("Object tags cannot be greater than {most}"),
        ));
    }
    Ok(tags.into_iter().collect())
}

fn document(tags: &[(String, String)]) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag { key: Some(key.clone()), value: Some(value.clone()) }).collect()
}

/// What `x-amz-tagging-count` says.
pub(super) fn count_of(object: &Object) -> Option<i32> {
    i32::try_from(object.attributes.tags.len()).ok().filter(|count| *count > 0)
}

async fn set(
    core: &Core,
    (bucket, key, version): (&str, &str, Option<&str>),
    tags: Pairs,
) -> S3Result<Option<String>> {
    let bucket = existing(core, bucket).await?;
    let name = versions::named(version)?;
    let object = core
        .meta
        .update_version(&bucket, key, name.as_ref(), |attributes, _| {
            attributes.tags.clone_from(&tags);
            Ok(())
        })
        .await
        .map_err(|error| error::delete(error, key, name.is_some()))?;
    Ok(versions::id_of(&bucket, &object))
}

pub(super) async fn put_object(
    core: &Arc<Core>,
    request: S3Request<PutObjectTaggingInput>,
) -> S3Result<S3Response<PutObjectTaggingOutput>> {
    let input = request.input;
    let tags = of_document(input.tagging, OBJECT_TAGS_MAX)?;
    let version_id = set(core, (&input.bucket, &input.key, input.version_id.as_deref()), tags).await?;
    Ok(S3Response::new(PutObjectTaggingOutput { version_id }))
}

pub(super) async fn delete_object(
    core: &Arc<Core>,
    request: S3Request<DeleteObjectTaggingInput>,
) -> S3Result<S3Response<DeleteObjectTaggingOutput>> {
    let input = request.input;
    let version_id =
        set(core, (&input.bucket, &input.key, input.version_id.as_deref()), Pairs::new()).await?;
    let output = DeleteObjectTaggingOutput { version_id };
    Ok(S3Response::with_status(output, http::StatusCode::NO_CONTENT))
}

pub(super) async fn get_object(
    core: &Arc<Core>,
    request: S3Request<GetObjectTaggingInput>,
) -> S3Result<S3Response<GetObjectTaggingOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let name = versions::named(input.version_id.as_deref())?;
    let found = core.meta.version(&bucket, &input.key, name.as_ref()).await.map_err(error::meta)?;
    let object = match found {
        Some(Found::Object(object)) => object,
        Some(Found::Marker { .. }) => {
            return Err(error::delete(DeleteError::IsMarker, &input.key, name.is_some()));
        }
        None => return Err(error::delete(DeleteError::NoSuchVersion, &input.key, name.is_some())),
    };
    let version_id =
        (bucket.features.versioning != Versioning::Off).then(|| object.version_name().to_string());
    Ok(S3Response::new(GetObjectTaggingOutput { tag_set: document(&object.attributes.tags), version_id }))
}

pub(super) async fn put_bucket(
    core: &Arc<Core>,
    request: S3Request<PutBucketTaggingInput>,
) -> S3Result<S3Response<PutBucketTaggingOutput>> {
    let input = request.input;
    let bucket = existing(core, &input.bucket).await?;
    let tags = of_document(input.tagging, BUCKET_TAGS_MAX)?;
    let bytes = super::document::encode(&tags)?;
    let put = core.meta.put_bucket_setting(&bucket, BucketSetting::Tags, Some(&bytes)).await;
    put.map_err(error::bucket)?;
    Ok(S3Response::new(PutBucketTaggingOutput::default()))
}

pub(super) async fn get_bucket(
    core: &Arc<Core>,
    request: S3Request<GetBucketTaggingInput>,
) -> S3Result<S3Response<GetBucketTaggingOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    let kept: Option<Pairs> = super::document::read(core, &bucket, BucketSetting::Tags).await?;
    let missing = || super::document::missing("NoSuchTagSet", "The TagSet does not exist");
    Ok(S3Response::new(GetBucketTaggingOutput { tag_set: document(&kept.ok_or_else(missing)?) }))
}

pub(super) async fn delete_bucket(
    core: &Arc<Core>,
    request: S3Request<DeleteBucketTaggingInput>,
) -> S3Result<S3Response<DeleteBucketTaggingOutput>> {
    let bucket = existing(core, &request.input.bucket).await?;
    core.meta.put_bucket_setting(&bucket, BucketSetting::Tags, None).await.map_err(error::bucket)?;
    Ok(S3Response::with_status(DeleteBucketTaggingOutput::default(), http::StatusCode::NO_CONTENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_decoded_like_a_query() {
        let tags = of_header(Some("b=2+3&a=%C3%A9&c")).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(tags, [pair("a", "é"), pair("b", "2 3"), pair("c", "")]);
        assert!(of_header(None).unwrap().is_empty());
    }

    #[test]
    fn too_many_long_doubled_and_reserved_tags_are_refused() {
        let many: Vec<String> = (0..11).map(|index| format!("k{index}=v")).collect();
        for header in ["a=1&a=2", "aws:x=1", "=1", &many.join("&"), &format!("{}=1", "k".repeat(129))] {
            assert!(of_header(Some(header)).is_err(), "{header}");
        }
    }
}
