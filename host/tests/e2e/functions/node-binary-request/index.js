module.exports = ({ req, res }) => res.binary(req.bodyBinary);
