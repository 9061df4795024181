module.exports = ({ res }) => res.json({});
