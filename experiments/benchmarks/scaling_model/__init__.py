"""What more devices would do, predicted from what a few did."""
