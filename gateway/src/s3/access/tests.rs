use super::*;

#[test]
fn what_is_not_named_needs_the_right_to_manage_the_bucket() {
    for operation in ["CreateBucket", "DeleteBucket", "PutBucketPolicy", "SomethingNew"] {
        assert_eq!(need(operation), Need::Bucket(Operation::Manage), "{operation}");
    }
    assert_eq!(need("GetObject"), Need::Object(Operation::Read));
}
